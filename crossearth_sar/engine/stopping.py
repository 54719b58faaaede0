"""Ctrl-C and SIGTERM: the step in progress ends and is saved, and the loader's workers live until then."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


class StopRequest:
    """Remembers Ctrl-C or a termination signal, so that the step in progress ends and is saved."""

    def __init__(self) -> None:
        self.received: str | None = None
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}

    def restore(self) -> None:
        """Lets the signals end the process again, as they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def leave_stopping_to_training(worker: int) -> None:
    """The loader's `worker_init_fn`: a worker outlives the signals that its training process outlives.

    A terminal and DeepSpeed's launcher signal every process of a job, and the training process fails when a
    worker dies. So a worker ends at the word of the training process alone, or when that is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "darwin":  # which does not tell who sent a signal; there, SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler of a worker does
