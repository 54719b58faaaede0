"""Probes: what an encoder's features are worth, by what is learnt on top of them from few labels."""
