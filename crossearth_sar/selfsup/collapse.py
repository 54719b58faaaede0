"""Collapse: the network that answers every image with one and the same vector."""

from __future__ import annotations


class CollapseError(RuntimeError):
    """Training was stopped for the embeddings of all images had become one. The same on all ranks."""
