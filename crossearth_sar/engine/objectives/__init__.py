"""What is learnt: a model, its losses and its score."""
