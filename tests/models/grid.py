"""Any part with any other: the cross product of all that may stand in the slots, over whatever is registered.

    python tests/models/grid.py        the whole of it, which `make grid` runs; test_grid.py proves a part in the suite

A combination holds, or `check` refuses it with a sentence. To hold means: it trains three steps in which every
parameter hears of the loss, it answers, a row's answer does not depend on what stands beside it, and the answer is
another when one of its parts is swapped while the numbers in all the others stay.
"""

import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from made import batch, config, model, pick  # noqa: E402

from funnelrank.errors import ConfigError  # noqa: E402
from funnelrank.loss import task_losses  # noqa: E402
from funnelrank.models import PARTS  # noqa: E402
from funnelrank.own_parts import part_settings  # noqa: E402
from funnelrank.train.optim import RowUpdates, dense_optimiser  # noqa: E402

SLOTS = ("prepare", "represent", "transfer", "predict", "side")
CHAINS = ("prepare", "side")
ROWS = 48
Combination = tuple             # what stands in each slot, in order: a part, None, or for a chain a tuple of parts


def pers(part: type) -> tuple:
    """What a part may be one of, for all or for each; empty if it does not ask."""
    asked = part_settings(part).model_fields.get("per")
    return get_args(asked.annotation) if asked else ()


def small(slot: str, name: str, **keys: Any) -> dict[str, Any]:
    """A part whose layers have few units."""
    for key, said in part_settings(PARTS[slot][name]).model_fields.items():
        if isinstance(said.default, tuple) and said.default and all(isinstance(v, int) for v in said.default):
            keys[key] = [6] * len(said.default)
    return {"name": name, **keys}


@cache
def choices(slot: str) -> list:
    """What may stand in a slot: nothing, where that is possible, and every part, for all or for each.

    A part that reads groups also stands there reading what parts of `prepare` make.
    """
    parts = [small(slot, name, **per) for name, part in PARTS[slot].items()
             for per in [{"per": p} for p in pers(part)] or [{}]]
    made = [group for part in PARTS["prepare"].values() for group in getattr(part, "makes", ())]
    parts += [small(slot, name, groups=[group]) for group in made for name, part in PARTS[slot].items()
              if slot != "prepare" and "groups" in part_settings(part).model_fields]
    if slot in CHAINS:
        return [(), *((p,) for p in parts)]
    return [None, *parts] if slot == "transfer" else parts


def whole() -> Iterator[Combination]:
    """Every combination; sums of `side` parts alone; every two parts of `prepare`, one after the other."""
    yield from itertools.product(*map(choices, SLOTS))
    yield from itertools.product(choices("prepare"), [None], [None], [None], choices("side")[1:])
    two = itertools.product([p for (p,) in choices("prepare")[1:]], repeat=2)
    yield from itertools.product(two, choices("represent"), [None], choices("predict")[:1], [()])


def said(parts: Combination) -> dict[str, Any]:
    return {slot: list(part) if slot in CHAINS else part for slot, part in zip(SLOTS, parts) if part}


def settings_of(parts: Combination):
    """Settings, or the sentence with which `check` refuses them."""
    try:
        return config(said(parts))
    except ConfigError as error:
        assert all(m.startswith(("model.", "embedding.")) and ";" in m for m in error.messages), error.messages
        return error.messages[0]


def pairwise(seed: int = 0) -> list[Combination]:
    """Few combinations that hold, in which any two parts of different slots meet, unless nothing lets them."""
    rng, there = random.Random(seed), list(map(choices, SLOTS))
    pairs = list(itertools.combinations(range(len(SLOTS)), 2))
    missing = {(i, a, j, b): (there[i][a], there[j][b]) for i, j in pairs for a in range(len(there[i]))
               for b in range(len(there[j]))}
    picked = []
    for i, a, j, b in list(missing):
        for _ in range(6 if (i, a, j, b) in missing else 0):
            drawn = [[rng.randrange(len(t)) for t in there] for _ in range(20)]
            for c in drawn:
                c[i], c[j] = a, b
            best = max(drawn, key=lambda c: sum((k, c[k], m, c[m]) in missing for k, m in pairs))
            parts = tuple(t[k] for t, k in zip(there, best))
            if not isinstance(settings_of(parts), str):
                picked.append(parts)
                for k, m in pairs:
                    missing.pop((k, best[k], m, best[m]), None)
                break
    return picked


def swapped(parts: Combination, rng: random.Random):
    """A slot, and settings that `check` accepts with another part there."""
    for _ in range(6):
        i = rng.randrange(len(SLOTS)) if parts[1] else rng.choice([0, 4])
        other = rng.choice(choices(SLOTS[i]))
        if str(other) != str(parts[i]):
            found = settings_of((*parts[:i], other, *parts[i + 1:]))
            if not isinstance(found, str):
                return SLOTS[i], found
    return None


def train(m, settings, rows) -> set[str]:
    """Three steps; the parameters that heard nothing of the loss in any of them."""
    dense = dense_optimiser(m, settings.train.optimiser)
    updates = RowUpdates(m.embedding, settings.embedding.optimiser)
    silent = {n for n, p in m.named_parameters() if p.requires_grad}
    m.train()
    for _ in range(3):
        dense.zero_grad()
        (task_losses(m.funnel, m(rows), rows.labels, rows.weight).sum() + (m.slots.penalty() or 0)).backward()
        silent -= {n for n, p in m.named_parameters() if n in silent and p.grad is not None and p.grad.any()}
        updates.apply(m.embedding.take_gradients())
        dense.step()
    m.eval()
    return silent


def answers(m, rows):
    with torch.no_grad():
        return m(rows).logits


def prove(parts: Combination, rng: random.Random) -> str | None:
    """None if the combination holds, the sentence if `check` refuses it; raises AssertionError if it does neither."""
    settings = settings_of(parts)
    if isinstance(settings, str):
        return settings
    rows, m, swap = batch(ROWS), model(settings), swapped(parts, rng)
    start = m.state_dict() if swap is None else {k: v.clone() for k, v in m.state_dict().items()}
    silent = train(m, settings, rows)
    for seed in (1, 2, 3):                               # six units of a ReLU may all be dead at birth, by chance
        silent = silent and silent & train(model(settings, seed), settings, rows)
    assert not silent, f"hear nothing of the loss: {sorted(silent)}"
    logits, beside = answers(m, rows), [40, 3, 7]
    assert logits.shape == (ROWS, 3) and logits.isfinite().all()
    torch.testing.assert_close(answers(m, pick(rows, beside)), logits[beside], atol=1e-5, rtol=1e-5)
    if swap:
        slot, settings = swap
        other = model(settings)
        other.load_state_dict({k: start[k] if k in start and start[k].shape == v.shape
                               and not k.startswith(f"slots.{slot}") else v for k, v in other.state_dict().items()})
        train(other, settings, rows)
        assert not torch.allclose(answers(other, rows), logits, atol=1e-6), f"says the same with another {slot}"
    return None


def main() -> None:
    torch.set_num_threads(1)
    share, rng = int(sys.argv[1]) if len(sys.argv) > 1 else 1, random.Random(0)
    held, refused, failed, start = 0, Counter(), [], time.time()
    for n, parts in enumerate(itertools.islice(whole(), 0, None, share), 1):
        try:
            sentence = prove(parts, rng)
            held += sentence is None
            refused.update([sentence] if sentence else [])
        except Exception as error:                       # whatever it is, it is no sentence of `check`
            failed.append(said(parts))
            print(f"{said(parts)}\n    {type(error).__name__}: {error}".split("\n\n")[0], flush=True)
        if n % 1000 == 0:
            print(f"{n:,} in {time.time() - start:,.0f} s: {held:,} hold, {refused.total():,} refused", flush=True)
    print(f"{n:,} combinations: {held:,} hold, {refused.total():,} are refused with one of {len(refused):,} sentences, "
          f"{len(failed):,} fail")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
