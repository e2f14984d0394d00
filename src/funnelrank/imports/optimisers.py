"""How parameters move, from EasyRec's and TorchEasyRec's optimisers."""

from __future__ import annotations

from typing import Any

from funnelrank.imports.source import Section

# their name: (ours of the network, ours of tables), and how that differs, if it does
KNOWN: dict[str, tuple[str, str, str]] = {
    "adam_optimizer": ("adam", "adam", "rows of tables move only when a batch has them (a lazy Adam)"),
    "lazy_adam_optimizer": ("adam", "adam", ""),
    "adam_async_optimizer": ("adam", "adam", "one machine trains, so nothing is asynchronous"),
    "adamw_optimizer": ("adamw", "adam", "weight decay acts on the network's matrices"),
    "adam_asyncw_optimizer": ("adamw", "adam", "weight decay acts on the network's matrices"),
    "lazy_adamw_optimizer": ("adamw", "adam", "weight decay acts on the network's matrices"),
    "adagrad_optimizer": ("adagrad", "adagrad", "sums of squares start from 0"),
    "rowwise_adagrad_optimizer": ("adagrad", "rowwise_adagrad", ""),
    "sgd_optimizer": ("sgd", "sgd", ""),
    "momentum_optimizer": ("sgd", "sgd", "without momentum"),
    "momentumw_optimizer": ("sgd", "sgd", "without momentum"),
    "rms_prop_optimizer": ("adam", "adam", "adam stands for it, with the decay of its squares"),
    "ftrl_optimizer": ("adagrad", "ftrl", "the network is moved by adagrad, which ftrl without l1 is"),
    "partial_rowwise_adam_optimizer": ("adam", "adam", "each number of a row has squares of its own"),
}


def optimisers(section: Section, *, tables: bool, network: bool) -> dict[str, Any]:
    """What goes to train.optimiser and embedding.optimiser, less the learning rate."""
    found: dict[str, Any] = {}
    for key in [k for k in section.names() if k.endswith("_optimizer")]:
        if key not in KNOWN:
            section.refused(key, "there is no such optimiser; adam, adamw, adagrad, rowwise_adagrad, ftrl and sgd are "
                                 "there")
            continue
        dense, rows, differs = KNOWN[key]
        inner = section.section(key)
        if differs and not (key == "adam_optimizer" and not tables):
            section.approximated(key, differs)
        betas = [inner.number("beta1", 0.9, to="betas"), inner.number("beta2", 0.999, to="betas")]
        if key == "rms_prop_optimizer":
            betas = [0.0, inner.number("decay", 0.9)]
            inner.approximated("decay", "adam's second beta")
            inner.approximated("epsilon", "adam's own")
            inner.approximated("momentum_optimizer_value", "without momentum")
        if key.startswith("momentum"):
            inner.approximated("momentum_optimizer_value", "without momentum")
        if inner.number("momentum", 0.0):
            inner.approximated("momentum", "without momentum")
        inner.ignored("sums of squares start from 0", "initial_accumulator_value")
        clips = inner.flag("gradient_clipping")
        inner.number("max_gradient")
        if clips:
            inner.approximated("gradient_clipping", "train.clip_norm clips all gradients together")
            inner.approximated("max_gradient", "train.clip_norm clips all gradients together")
            found["train.clip_norm"] = inner.number("max_gradient", 1.0)
        decay = inner.number("weight_decay", 1e-6 if "w_optimizer" in key and key != "momentum_optimizer" else 0.0,
                             to="l2")
        if inner.has("weight_decay_mode") and inner.text("weight_decay_mode") == "DECOUPLE":
            inner.approximated("weight_decay_mode", "decay is added to the gradient")
        adams = {} if betas == [0.9, 0.999] else {"betas": betas}
        if network:
            found["train.optimiser.name"] = dense
            if adams and dense in ("adam", "adamw"):
                found["train.optimiser.betas"] = betas
            if decay:
                found["train.optimiser.l2"] = decay
        if tables:
            found["embedding.optimiser.name"] = rows
            if adams and rows == "adam":
                found["embedding.optimiser.betas"] = betas
            if rows == "ftrl":
                found["embedding.optimiser.l1"] = inner.number("l1_reg", 0.0, to="embedding.optimiser.l1")
                found["embedding.optimiser.l2"] = inner.number("l2_reg", 0.0, to="embedding.optimiser.l2")
                inner.approximated("learning_rate_power", "a step falls with the square root of what was seen")
                inner.approximated("l2_shrinkage_reg", "left out")
            elif decay and not network:
                found["embedding.optimiser.l2"] = decay
        inner.ignored("sums of squares start from 0", "initial_accumulator_value")
    return found


def schedule(section: Section) -> tuple[float | None, dict[str, Any] | None]:
    """The learning rate at its highest, and train.schedule, from a section that holds one schedule."""
    for key in section.names():
        if not key.endswith("_learning_rate"):
            continue
        inner = section.section(key)
        if key == "constant_learning_rate":
            return inner.number("learning_rate", 0.002, to="lr"), None
        if key == "exponential_decay_learning_rate":
            rate = inner.number("initial_learning_rate", 0.002, to="lr")
            return rate, exponential(inner, rate)
        if key == "cosine_decay_learning_rate":
            rate = inner.number("learning_rate_base", 0.002, to="lr")
            inner.approximated("total_steps", "the course ends with the run")
            inner.approximated("warmup_learning_rate", "warm-up begins near 0")
            inner.approximated("hold_base_rate_steps", "the course begins right after warm-up")
            warmup = inner.whole("warmup_steps", 10_000, to="train.schedule.warmup")
            return rate, {"name": "cosine", **({"warmup": warmup} if warmup else {})}
        if key == "poly_decay_learning_rate":
            rate = inner.number("learning_rate_base", 0.002, to="lr")
            end = inner.number("end_learning_rate", 0.0, to="train.schedule.final")
            inner.approximated("total_steps", "the course ends with the run")
            if inner.number("power", 1.0) != 1.0:
                inner.approximated("power", "the rate falls along a line")
            return rate, {"name": "linear", **({"final": end / rate} if end and rate else {})}
        section.refused(key, "there is no such course of the learning rate; constant, exponential, linear and cosine "
                             "are there (train.schedule)")
        return inner.number("initial_learning_rate", inner.number("learning_rate_base")), None
    return None, None


def exponential(section: Section, rate: float) -> dict[str, Any]:
    """train.schedule of an exponential decay."""
    size = "decay_steps" if section.has("decay_steps") else "decay_size"
    every = section.whole(size, 4_000_000, to="train.schedule.every")
    decay = section.number("decay_factor", 0.95, to="train.schedule.decay")
    least = section.number("min_learning_rate", 0.0, to="train.schedule.final")
    start = "burnin" if section.has("burnin_steps") else "warmup"
    warmup = section.whole("burnin_steps", section.whole("warmup_size", 0, to="train.schedule.warmup"),
                           to="train.schedule.warmup")
    if section.number(f"{start}_learning_rate", 0.0):
        section.approximated(f"{start}_learning_rate", "warm-up begins near 0")
    if not section.flag("staircase", True, to="train.schedule: the rate falls by steps"):
        section.approximated("staircase", "the rate falls by steps, not from one batch to the next")
    if not 0 < decay <= 1:
        section.refused("decay_factor", "a share of 0 to 1")
        decay = 1.0
    return {"name": "exponential", "decay": decay, "every": max(1, every),
            **({"final": min(1.0, least / rate)} if least and rate else {}), **({"warmup": warmup} if warmup else {})}
