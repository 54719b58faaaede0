"""Ctrl-C and SIGTERM: the step in progress ends and is saved, and the loader's workers live until then.

A step that waits for a hung loader never ends: a second Ctrl-C ends the process at once. What was saved
before is whole, even where that falls into a save.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

from crossearth_sar.engine.orphans import end_with_parent

TWICE_WITHIN_S = 1.0
"""Two of one Ctrl-C: the terminal's, and the launcher's."""


class StopRequest:
    """Remembers Ctrl-C or a termination signal, so that the step in progress ends and is saved.

    A second Ctrl-C, a second or more after the first, ends the process at once; launchers pass one on twice.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupted: float | None = None
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._remember) for number in numbers}

    def restore(self) -> None:
        """Lets the signals end the process again, as they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            _say("stopping: the step in progress ends and is saved. Ctrl-C again ends at once")
        elif now - self._interrupted >= TWICE_WITHIN_S:
            _say("ended at once; what was saved before is there")
            os._exit(128 + signal.SIGINT)


def _say(words: str) -> None:
    """From the first rank; print is not for handlers of signals."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            os.write(2, f"\n{words}\n".encode())


def leave_stopping_to_training(worker: int) -> None:
    """The loader's `worker_init_fn`: a worker outlives the signals that its training process outlives.

    A terminal and DeepSpeed's launcher signal every process of a job, and the training process fails when a
    worker dies. So a worker ends at the word of the training process alone, or when that is gone.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "darwin":  # which does not tell who sent a signal; there, SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler of a worker does
