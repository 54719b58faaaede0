"""The layer in place of a dense FFN: reading it, upcycling it, replacing it."""
