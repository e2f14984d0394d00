"""For who looks on while a network computes."""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch


def as_written() -> AbstractContextManager:
    """Within it modules run as they are written, those that were compiled too: hooks would have them compiled anew."""
    # importing torch's compiler takes a second; where it is not there nothing is compiled
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
