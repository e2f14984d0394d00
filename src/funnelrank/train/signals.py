"""SIGINT and SIGTERM held back until a training step is whole, so that a checkpoint can be written before they act."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(BaseException):
    """Raised within `let_through` alone; whoever opened that catches it."""


class Held:
    """The signal that came, if one did. Where signals cannot be caught, outside the main thread, none ever does."""

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, object] = {}
        self._open = False

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Within the block a signal raises Interrupted at once: for what takes long and changes nothing."""
        self._open = True
        try:
            if self.number:
                raise Interrupted
            yield
        finally:
            self._open = False

    def pass_on(self) -> None:
        """Does now what the signal would have done when it came. Returns if that was to go on."""
        number, self.number = self.number, None
        self._restore()
        try:
            signal.raise_signal(number)
        finally:
            self._catch()

    def _catch(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)
                            if signal.getsignal(s) not in (signal.SIG_IGN, None)}

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        if self._open:
            self._open = False
            raise Interrupted


@contextmanager
def held_signals() -> Iterator[Held]:
    """Within the block signals wait in what it yields; one that nobody passed on acts when the block ends."""
    held = Held()
    held._catch()
    try:
        yield held
    finally:
        held._restore()
    if held.number:
        signal.raise_signal(held.number)
