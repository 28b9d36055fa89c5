"""How a training is stopped: by Ctrl-C, by a scheduler's SIGTERM, or because its time is over; never within a step."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM; the message says what was saved and how to go on."""


class OutOfTime(Interrupted):
    """Training reached the time it was given; saved like any other stop."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list]:
    """Ctrl-C and SIGTERM become a note in a list, so that a step is never torn apart. A second one stops at once."""
    requests: list[int] = []

    def note(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        before = {}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
