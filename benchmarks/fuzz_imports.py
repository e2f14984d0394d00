"""Configs of EasyRec, TorchEasyRec and FuxiCTR that nobody wrote, for fuzz.py.

They begin as those that tests/imports has for every model class. A tree of fields is cut, doubled, renamed with keys of
the same system, and given values that do not belong; what is written out of it is syntactically valid. Then, at times,
characters of the text are cut and mixed, and it is not.
"""

import copy
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "imports"))

import easyrec_configs  # noqa: E402
import fuxictr_configs  # noqa: E402
import torch_easyrec_configs  # noqa: E402

from funnelrank import config as configs  # noqa: E402
from funnelrank import document  # noqa: E402
from funnelrank.data.encode import Encoder  # noqa: E402
from funnelrank.errors import ConfigError  # noqa: E402
from funnelrank.imports import prototext, read  # noqa: E402
from funnelrank.imports.prototext import Field, Message, Word  # noqa: E402
from funnelrank.ranker import RankingModel  # noqa: E402

STRANGE = ["", "a", "all", "user", "item", "clk", "\x00", "\u2028", "é|.:/", "lambda x: x[0]", "x" * 300, 0, 1, -1,
           2, 3, 7, 0.5, -0.5, 1e-9, 1e30, float("inf"), float("nan"), 2**31, 2**63, 10**30, Word("true"),
           Word("false"), Word("WEIRD"), "[1,2]", "0", "-1"]
PIECES = ["{", "}", "[", "]", "<", ">", ":", ";", ",", '"', "'", "#", "\\", "\\x", "\\777", "-", "--", ".", "0x",
          "1e999", "\x00", "\ufeff", "\n", "\t", "é", "{" * 120, "[" * 120, "a: " * 50, "- ", "&a ", "*a", "!!x ", "? ",
          "|", "<<: "]


def _trees(module: Any) -> list[Message]:
    return [prototext.read(module.config(model), name) for name, model in module.MODELS.items()]


TREES = {"easyrec": _trees(easyrec_configs), "torch_easyrec": _trees(torch_easyrec_configs)}


def _keys(message: Message) -> set[str]:
    found = set()
    for f in message.fields:
        found |= {f.name} | (_keys(f.value) if isinstance(f.value, Message) else set())
    return found


KEYS = {system: sorted(set().union(*map(_keys, trees))) for system, trees in TREES.items()}
_read = lambda text: document.read(text, "x").value
FUXICTR = [(_read(fuxictr_configs.DATASET.replace("LABELS", fuxictr_configs.TWO if "num_tasks" in keys else
                                                           fuxictr_configs.ONE)),
            _read(fuxictr_configs.BASE + fuxictr_configs.experiment("it", model, keys)))
           for model, keys in fuxictr_configs.MODELS.items()]

FUXICTR_KEYS = sorted({k for data, model in FUXICTR for section in (model["it"], model["Base"], data["shop_x1"], *data[
    "shop_x1"]["feature_cols"]) for k in section})


# ---- protobuf's text format

def _messages(message: Message) -> list[Message]:
    return [message] + [m for f in message.fields if isinstance(f.value, Message) for m in _messages(f.value)]


def _mutate(tree: Message, draw: random.Random, keys: list[str]) -> None:
    messages = [m for m in _messages(tree) if m.fields]
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3, 8])):
        inside = draw.choice(messages)
        if not inside.fields:
            continue
        at, how = draw.randrange(len(inside.fields)), draw.randrange(9)
        chosen = inside.fields[at]
        if how == 0:
            del inside.fields[at]
        elif how == 1:
            inside.fields.insert(at, copy.deepcopy(chosen))
        elif how == 2:
            chosen.name = draw.choice(keys)
        elif how == 3:
            chosen.value = draw.choice(STRANGE)
        elif how == 4:                                        # a value of another field
            other = draw.choice(draw.choice(messages).fields or [chosen])
            chosen.value = copy.deepcopy(other.value)
        elif how == 5:                                        # a whole field from elsewhere
            inside.fields.insert(at, copy.deepcopy(draw.choice(draw.choice(messages).fields or [chosen])))
        elif how == 6:
            inside.fields.insert(at, Field(draw.choice(keys), draw.choice(STRANGE), 0))
        elif how == 7:
            draw.shuffle(inside.fields)
        elif isinstance(chosen.value, Message):
            chosen.value.fields.clear()
        else:
            chosen.value = Message(0)


def _written(message: Message, depth: int = 0) -> str:
    lines = []
    for f in message.fields:
        name = f.name if re.fullmatch(r"[A-Za-z_]\w*", f.name) else "x"
        if isinstance(f.value, Message):
            lines.append(f"{'  ' * depth}{name} {{\n{_written(f.value, depth + 1)}{'  ' * depth}}}\n")
        else:
            lines.append(f"{'  ' * depth}{name}: {_literal(f.value)}\n")
    return "".join(lines)


def _literal(value: Any) -> str:
    if isinstance(value, Word | int | float):
        return str(value)
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else "".join(f"\\{b:03o}" for b in c.encode())
                         for c in value) + '"'


# ---- FuxiCTR's YAML

def _mutate_yaml(value: Any, draw: random.Random, keys: list[str]) -> None:
    holders: list[Any] = []

    def gather(node: Any) -> None:
        if isinstance(node, dict | list) and node:
            holders.append(node)
            for inner in node.values() if isinstance(node, dict) else node:
                gather(inner)
    gather(value)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3, 8])):
        holder = draw.choice(holders)
        if not holder:
            continue
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        how = draw.randrange(6)
        if how == 0:
            del holder[key]
        elif how == 1:
            holder[key] = draw.choice([None, [], {}, True, *STRANGE])
        elif how == 2:
            holder[key] = copy.deepcopy(draw.choice(holders))
        elif how == 3 and isinstance(holder, dict):
            holder[draw.choice(keys)] = holder.pop(key)
        elif how == 4 and isinstance(holder, dict):
            holder[draw.choice(keys)] = draw.choice([None, [], {}, *STRANGE])
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = [holder[key]]


def _torn(text: str, draw: random.Random) -> str:
    for _ in range(draw.choice([1, 1, 2, 5])):
        a = draw.randrange(len(text) + 1)
        b = min(len(text), a + draw.choice([0, 0, 1, 3, 30]))
        text = text[:a] + draw.choice(PIECES) * draw.choice([0, 1, 1, 3]) + text[b:]
    return text


# ---- one case

def attempt(draw: random.Random, place: Path) -> str:
    """What an import came to. Raises whatever is neither an import nor a ConfigError of one line a message."""
    system = draw.choice(["easyrec", "easyrec", "torch_easyrec", "fuxictr"])
    torn = draw.random() < 0.3
    if system == "fuxictr":
        files = [place / "dataset_config.yaml", place / "model_config.yaml"]
        pair = copy.deepcopy(draw.choice(FUXICTR))
        keys = FUXICTR_KEYS
        which = draw.randrange(2)
        _mutate_yaml(pair[which], draw, keys)
        texts = [document.write(_plain(part)) for part in pair]
        if torn:
            texts[which] = _torn(texts[which], draw)
    else:
        tree = copy.deepcopy(draw.choice(TREES[system]))
        _mutate(tree, draw, KEYS[system])
        files, texts = [place / "it.config"], [_written(tree)]
        if torn:
            texts = [_torn(texts[0], draw)]
    for file, text in zip(files, texts):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = read(files, system, "it" if system == "fuxictr" else None)
    except ConfigError as error:
        assert error.messages and all(m and "\n" not in m for m in error.messages), error.messages
        str(error).encode()
        lines = [m for m in error.messages if re.match(r"(/.*/)?(it|dataset_config and model_config|dataset_config|"
                                                       r"model_config)\.(config|yaml)((:\d+){1,2}: |, line \d+: )",
                                                       m.replace(".yaml and ", " and "))]
        assert len(lines) == len(error.messages), error.messages
        seen = any("imported, it would not be a config" in m for m in error.messages)
        return "seen by check alone" if seen else "told with a line"
    json.dumps(found.page())
    assert all(row.said for row in found.rows if row.verdict != "carried"), "a verdict without a reason"
    if found.of("refused"):
        return "refused by name"
    said = configs.load(document.read(found.text, "imported").value)
    if draw.random() < 0.05:                                  # what check lets pass can be built
        RankingModel(said.settings, said.schema, Encoder.unfitted(said.schema, 12).layout, {})
    return "imported"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Word) else value
