"""Training under DeepSpeed: what it must be told, and where it keeps what is learnt."""
