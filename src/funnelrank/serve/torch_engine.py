"""An artefact in torch: the very path of `predict`, and the Scorer where rows share a user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from funnelrank.api import Ranker
from funnelrank.artefact import artefact_folder
from funnelrank.data.encoded import Encoded
from funnelrank.data.loader import pack
from funnelrank.kernels import keep_freed_memory
from funnelrank.scorer import Scorer


class TorchEngine:

    def __init__(self, ranker: Ranker, threads: int = 1):
        self.encoder, self.golden, self.about, self.threads = ranker.encoder, ranker.golden, ranker.about, threads
        self.model, self.served = ranker.model.eval(), ranker.config.schema.served
        self.scorer = Scorer(ranker.model, self.served).eval()

    @classmethod
    def load(cls, folder: Path, threads: int = 1, allow_code: bool = False) -> TorchEngine:
        keep_freed_memory()
        return cls(Ranker.load(artefact_folder(folder), allow_code), threads)

    def alone(self, rows: Encoded) -> list[np.ndarray]:
        """Each row by itself, to the bit what `predict` gives of the same rows."""
        with self._ready():
            said = self.model.served(pack(rows, slice(None)))
            return [self.model.funnel.answer(said, o).numpy() for o in self.served]

    def shared(self, rows: Encoded, users: Encoded, row_user: np.ndarray) -> list[np.ndarray]:
        """Rows whose users' features stand in `users`; row_user [B] int64."""
        with self._ready():
            found = self.scorer.answer(pack(rows, slice(None)), pack(users, slice(None)), torch.from_numpy(row_user))
            return [t.numpy() for t in found]

    def _ready(self) -> torch.inference_mode:
        if torch.get_num_threads() != self.threads:           # a thread's own
            torch.set_num_threads(self.threads)
        return torch.inference_mode()
