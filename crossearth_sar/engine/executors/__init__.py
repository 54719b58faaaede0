"""How a training step is executed: DeepSpeed on ranks, or a light form."""
