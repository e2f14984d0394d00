"""For who looks on while a network computes."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Switch:
    """Whether a faster way is taken: `on`, but within `off()`, for who watches torch's own operations."""

    def __init__(self):
        self.on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


def as_written() -> AbstractContextManager:
    """Within it modules run as they are written, those that were compiled too: hooks would have them compiled anew."""
    # importing torch's compiler takes a second; where it is not there nothing is compiled
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
