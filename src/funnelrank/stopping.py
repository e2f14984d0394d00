"""Being asked to end, by Ctrl-C or SIGTERM: an exception that leaves nothing half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_asked_to_end: list[type[KeyboardInterrupt]] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, so that temporary files are removed on the way out as they are after Ctrl-C."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT (unless ignored, as in a script's background) and SIGTERM as exceptions that leave nothing half done."""
    def end(number: int, frame: object) -> None:
        _asked_to_end[:] = [Terminated if number == signal.SIGTERM else KeyboardInterrupt]
        raise _asked_to_end[0]

    _asked_to_end.clear()
    signals = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        signals = []                    # only there may they be caught
    before = {s: signal.signal(s, end) for s in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refuse_to_go_on() -> None:
    """Raises once more what was raised inside something that swallows all exceptions."""
    if _asked_to_end:
        raise _asked_to_end[0]
