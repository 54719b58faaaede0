"""Training: ranks, optimisation, checkpoints, logs, and the loop that uses them."""
