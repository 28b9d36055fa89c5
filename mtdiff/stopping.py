"""How a training is stopped: by Ctrl-C, by a scheduler's signal, or because its time is over; never within a step."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

from mtdiff import distributed

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
"""Ctrl-C; what schedulers and torchrun send; a terminal that closes; what SLURM sends before its time is over."""
TIME = 0.5
"""The reason that is no signal: time is over. Less than the number of any signal, which goes before it."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, or (0) by none; the message says what was saved and how to go on."""

    def __init__(self, text: str = "", number: int = 0):
        super().__init__(text)
        self.number = number


class OutOfTime(Interrupted):
    """Training reached the time it was given; saved like any other stop."""


@contextlib.contextmanager
def stop_requests(safe: Callable[[], str]) -> Iterator[list]:
    """Signals become notes in a list, so that a step is never torn apart. A second Ctrl-C stops at once.

    `safe` says what that leaves. Any other signal may come twice: torchrun passes on what its processes may have got
    themselves, Ctrl-C too. A signal that is ignored stays ignored (SIGHUP under nohup).
    """
    requests: list[int] = []

    def note(number, frame):
        if requests and number == signal.SIGINT and distributed.world() == 1:
            raise KeyboardInterrupt(f"stopped at once; {safe()}")
        requests.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: whoever runs the thread handles signals
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """One answer of several processes to whether, and why, they stop after a step.

    They ask each other about once a second, not at every step: each time at a step that they agreed on the last time.
    """

    def __init__(self, step: int):
        self.next, self.step, self.then = step, step, time.monotonic()

    def __call__(self, step: int, reason: float) -> float:
        """The largest reason of any process: 0, `TIME` or the number of a signal; 0 at a step where nobody asks."""
        if distributed.world() == 1:
            return reason
        if step < self.next:
            return 0.0
        now = time.monotonic()
        pace = (now - self.then) / max(1, step - self.step)
        reason, pace = map(max, zip(*distributed.gathered((reason, pace)), strict=True))
        self.next, self.step, self.then = step + max(1, int(1 / pace)), step, now
        return reason
