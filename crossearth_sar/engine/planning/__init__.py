"""How a run lies on its ranks, and what memory that takes, before anything is built."""
