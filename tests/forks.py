"""Work in a child of this process, which has imported everything and may be killed."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


def in_a_child(work: Callable[[], None]) -> int:
    """Its exit code, negative for a signal; what it says on stderr is not shown."""
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
