"""Samples: simulated or read from files, on their way to the model."""
