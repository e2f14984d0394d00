"""The whole registry: parts by slot, and papers as recipes that fill the slots.

A recipe's slot is what a config would say there. `model: {name: aitm, represent: {hidden: [64]}}` changes one key;
`represent: {name: other}` swaps the part; what a recipe says of `per` (one part for all tasks, or one each) holds for
whatever is swapped in.
"""

from typing import Any

from torch import nn

from funnelrank.models.aitm import InformationTransfer
from funnelrank.models.mlp import LinearHeads, MLPBody, Towers

PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "prepare": {},
    "represent": {"mlp": MLPBody},
    "transfer": {"ait": InformationTransfer},
    "predict": {"linear": LinearHeads, "towers": Towers},
    "side": {},
}

MODELS: dict[str, dict[str, Any]] = {
    "aitm": {
        "represent": {"name": "mlp", "per": "task"},
        "transfer": {"name": "ait"},
        "predict": {"name": "linear"},
        "calibrator": 0.6,
    },
    "shared_bottom": {
        "represent": {"name": "mlp", "hidden": [128]},
        "predict": {"name": "towers"},
    },
    "single_task": {                      # an MLP for each task; only embeddings are shared
        "represent": {"name": "mlp", "per": "task"},
        "predict": {"name": "linear"},
    },
}

__all__ = ["MODELS", "PARTS"]
