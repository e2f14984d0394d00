"""Probabilities after training: a map of each binary task's log-odds, fitted on held-out rows and shipped in the model.

    u = log p - log(1 - p)
    w = a log p - b log(1 - p) + c           platt: a = b; beta (Kull, Silva Filho and Flach 2017): a and b apart
    v = the broken line through (x_k, y_k)   isotonic; it goes on with slope 1 beyond its ends. Else v = w
    z = slope[scenario] v + shift[scenario]
    p' = sigmoid(z), but not above the p' of the step before where p was not above its p

Every piece rises strictly, so rows of one scenario keep their order except where the last line holds one down: where
a step was no likelier than the one before, it stays so, and maps of two tasks that were wrong in different ways can
disagree about a row. Where they disagree about many (undeclared sampling of a step does that), no map of the later step
alone keeps order, funnel and calibration together. There `given` is set, and the map is of its probability given the
step before:

    u = log c - log(1 - c), c = p / p(before);     p' = p'(before) sigmoid(z)

which takes over how the step before was mended row by row. Fitting is evaluate/calibrate.py's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank.funnel import Prediction, log1mexp

KNOTS = {"platt": 2, "beta": 2, "isotonic": 32}
SURE = 1e-6             # a step given the one before is no surer than this, so that its log-odds are finite


class Calibration(nn.Module):
    """Prediction -> Prediction. Says nothing new until it is fitted.

    parents, kinds   as in Funnel
    scenarios        S, codes 0 .. S - 1; 0 null and 1 unseen are scenarios like others
    """

    def __init__(self, parents: Sequence[int | None], kinds: Sequence[str], reading: str, scenarios: int, method: str):
        super().__init__()
        T, K = len(parents), KNOTS[method]
        self.parents, self.kinds, self.reading = list(parents), list(kinds), reading
        self.binary = [t for t, kind in enumerate(kinds) if kind == "binary"]
        self.register_buffer("line", torch.tensor([[1.0, 1.0, 0.0]] * T, dtype=torch.float64))       # a, b, c
        self.register_buffer("x", torch.arange(K, dtype=torch.float64).repeat(T, 1))
        self.register_buffer("y", torch.arange(K, dtype=torch.float64).repeat(T, 1))
        self.register_buffer("slope", torch.ones(T, scenarios, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(T, scenarios, dtype=torch.float64))
        self.register_buffer("given", torch.zeros(T, dtype=torch.bool))      # the map is of p / p(before)

    def forward(self, said: Prediction, scenario: Tensor) -> Prediction:
        """scenario [B]. `logits` stay as they were."""
        z = self.log_odds(said.log_p, said.log_not_p, scenario)                            # [B, T]
        columns = {k: list(getattr(said, k).unbind(1)) for k in ("log_p", "log_not_p", "mean", "given")}
        for t, (parent, kind) in enumerate(zip(self.parents, self.kinds)):
            if kind == "binary":
                columns["log_p"][t] = F.logsigmoid(z[:, t]).to(said.log_p.dtype)
                columns["log_not_p"][t] = F.logsigmoid(-z[:, t]).to(said.log_p.dtype)
                columns["mean"][t] = columns["log_p"][t].exp()
                columns["given"][t] = columns["mean"][t] if parent is None else (
                    columns["log_p"][t] - columns["log_p"][parent]).exp().clamp(max=1)
            elif self.reading != "joint" and parent is not None:
                columns["mean"][t] = columns["given"][t] * columns["mean"][parent]
        return said._replace(**{k: torch.stack(v, 1) for k, v in columns.items()})

    def log_odds(self, log_p: Tensor, log_not_p: Tensor, scenario: Tensor) -> Tensor:
        """log p, log(1 - p) [B, T], scenario [B] -> calibrated log-odds [B, T] float64, children below parents."""
        log_p, log_not_p = log_p.double(), log_not_p.double()
        alone, s = self._mapped(log_p, log_not_p, scenario), scenario.long()
        z: list[Tensor] = []
        for t, parent in enumerate(self.parents):
            if parent is None or self.kinds[t] != "binary":
                z.append(alone[:, t])
                continue
            held = torch.where(log_p[:, t] <= log_p[:, parent], torch.minimum(alone[:, t], z[parent]), alone[:, t])
            log_c, log_not_c = conditional(log_p[:, t], log_p[:, parent])
            g = self._mapped(log_c.unsqueeze(1), log_not_c.unsqueeze(1), s, slice(t, t + 1)).squeeze(1)
            log_q = F.logsigmoid(z[parent]) + F.logsigmoid(g)
            z.append(torch.where(self.given[t], log_q - log1mexp(log_q), held))
        return torch.stack(z, 1)

    def _mapped(self, log_p: Tensor, log_not_p: Tensor, scenario: Tensor, tasks: slice = slice(None)) -> Tensor:
        """The maps of some tasks, each of its own column: log p, log(1 - p) [B, t] -> z [B, t]."""
        a, b, c = self.line[tasks].unbind(1)
        x, y = self.x[tasks], self.y[tasks]
        w = a * log_p - b * log_not_p + c
        k = (w.unsqueeze(2) >= x[:, 1:-1]).sum(2)                                          # [B, t] piece
        x0, x1, y0, y1 = (self._at(knots, k) for knots in (x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:]))
        v = y0 + (y1 - y0) / (x1 - x0) * (w.clamp(x0, x1) - x0)
        v = v + (w - x[:, -1]).clamp(min=0) - (x[:, 0] - w).clamp(min=0)
        s = scenario.long()
        return self.slope[tasks].t()[s] * v + self.shift[tasks].t()[s]

    @staticmethod
    def _at(knots: Tensor, k: Tensor) -> Tensor:
        """knots [T, K], k [B, T] -> [B, T]."""
        return knots.unsqueeze(0).expand(k.shape[0], -1, -1).gather(2, k.unsqueeze(2)).squeeze(2)


def conditional(log_p: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """log c and log(1 - c) [B] of c = p / p(before), at most 1 - SURE."""
    log_c = (log_p - before).clamp(max=-SURE)
    return log_c, log1mexp(log_c)
