"""The whole registry: parts by slot, and papers as recipes that fill the slots.

A recipe's slot is what a config would say there. `model: {name: aitm, represent: {hidden: [64]}}` changes one key;
`represent: {name: other}` swaps the part; what a recipe says of `per` (one part for all tasks, or one each) holds for
whatever is swapped in.
"""

from typing import Any

from torch import nn

from funnelrank.models.afm import AttentionalFM
from funnelrank.models.aitm import InformationTransfer
from funnelrank.models.apg import GeneratedMLP
from funnelrank.models.autoint import AutoIntBody, AutoIntBottom
from funnelrank.models.backbone import Backbone
from funnelrank.models.dbmtl import RelationNetwork
from funnelrank.models.dcn_v2 import CrossNetwork
from funnelrank.models.deepfm import DeepFMBody, FirstOrder, SecondOrder
from funnelrank.models.din import TargetAttention
from funnelrank.models.fnn import FactorisationSupported
from funnelrank.models.hmoe import ScenarioTowers
from funnelrank.models.m2m import MetaAttention, MetaTowers, ScenarioView, SequenceAttention
from funnelrank.models.mlp import LinearHeads, MLPBody, Towers
from funnelrank.models.mmoe import MixtureOfExperts
from funnelrank.models.nfm import NeuralFM
from funnelrank.models.pepnet import EmbeddingGate, Flat, ParameterGates
from funnelrank.models.ple import ProgressiveExtraction
from funnelrank.models.pnn import ProductNetwork
from funnelrank.models.star import AuxiliaryNetwork, PartitionedNorm, StarHeads, StarMLP
from funnelrank.models.variational_dropout import VariationalDropout
from funnelrank.models.wide_deep import Wide
from funnelrank.own_parts import imported, is_own

PARTS: dict[str, dict[str, type[nn.Module]]] = {
    "prepare": {"din": TargetAttention, "partitioned_norm": PartitionedNorm, "epnet": EmbeddingGate,
                "mha": SequenceAttention, "scenario_view": ScenarioView, "autoint": AutoIntBottom,
                "variational_dropout": VariationalDropout},
    "represent": {"mlp": MLPBody, "mmoe": MixtureOfExperts, "ple": ProgressiveExtraction, "star": StarMLP,
                  "flat": Flat, "apg": GeneratedMLP, "m2m": MetaAttention, "fnn": FactorisationSupported,
                  "pnn": ProductNetwork, "nfm": NeuralFM, "afm": AttentionalFM, "deepfm": DeepFMBody,
                  "autoint": AutoIntBody, "dcn_v2": CrossNetwork, "backbone": Backbone},
    "transfer": {"ait": InformationTransfer, "dbmtl": RelationNetwork},
    "predict": {"linear": LinearHeads, "towers": Towers, "star": StarHeads, "ppnet": ParameterGates,
                "hmoe": ScenarioTowers, "meta_towers": MetaTowers},
    "side": {"lr": FirstOrder, "fm": SecondOrder, "wide": Wide, "auxiliary": AuxiliaryNetwork},
}


def part_class(slot: str, name: str) -> type[nn.Module]:
    """The class of a part: one of PARTS, or of the user's own, named module:Class."""
    return imported(name) if is_own(name) else PARTS[slot][name]


def _each(part: str) -> dict[str, Any]:
    """The part and a linear head for each task; only embeddings are shared."""
    return {"represent": {"name": part, "per": "task"}, "predict": {"name": "linear"}}


MODELS: dict[str, dict[str, Any]] = {
    "auto": {     # of a config that names no model: docs/quality.md
        "represent": {"name": "dcn_v2", "layers": 2, "rank": 64, "structure": "parallel", "hidden": [256, 128],
                      "dropout": 0.1},
        "predict": {"name": "towers"},
    },
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
    "mmoe": {
        "represent": {"name": "mmoe"},
        "predict": {"name": "towers"},
    },
    "omoe": {
        "represent": {"name": "mmoe", "per": "all"},
        "predict": {"name": "towers"},
    },
    "cgc": {
        "represent": {"name": "ple", "levels": 1},
        "predict": {"name": "towers"},
    },
    "ple": {
        "represent": {"name": "ple"},
        "predict": {"name": "towers"},
    },
    "esmm": {
        "represent": {"name": "mlp", "per": "task"},
        "predict": {"name": "linear"},
        "reading": "conditional",
    },
    "escm2_ips": {**_each("mlp"), "reading": "conditional", "debias": {"name": "ips"}},
    "escm2_dr": {**_each("mlp"), "reading": "conditional", "debias": {"name": "dr"}},
    "dcmt": {**_each("mlp"), "reading": "conditional", "debias": {"name": "dcmt"}},
    "dbmtl": {
        "represent": {"name": "mlp", "hidden": [128]},
        "transfer": {"name": "dbmtl"},
        "predict": {"name": "linear"},
    },
    "star": {
        "prepare": ["partitioned_norm"],
        "represent": {"name": "star"},
        "predict": {"name": "star"},
        "side": ["auxiliary"],
    },
    "hmoe": {
        "represent": {"name": "mmoe", "per": "scenario"},
        "predict": {"name": "hmoe"},
    },
    "apg": {
        "represent": {"name": "apg", "per": "task"},
        "predict": {"name": "linear"},
    },
    "m2m": {
        "prepare": ["mha", "scenario_view"],
        "represent": {"name": "m2m", "groups": ["scenario_view"]},
        "predict": {"name": "meta_towers", "groups": ["scenario_view"]},
    },
    "pepnet": {
        "prepare": ["epnet"],
        "represent": {"name": "flat"},
        "predict": {"name": "ppnet"},
    },
    "lr": {"side": ["lr"]},
    "fm": {"side": ["lr", "fm"]},
    "deepfm": {**_each("mlp"), "side": ["lr", "fm"]},
    "din": {
        "prepare": ["din"],
        "represent": {"name": "mlp", "activation": "dice", "per": "task"},
        "predict": {"name": "linear"},
    },
    "single_task": _each("mlp"),
    "dnn": _each("mlp"),                  # what the field calls it where there is one task
    "wide_deep": {**_each("mlp"), "side": ["wide"]},
    "fnn": _each("fnn"),
    "pnn": _each("pnn"),
    "nfm": {**_each("nfm"), "side": ["lr"]},
    "afm": {**_each("afm"), "side": ["lr"]},
    "autoint": _each("autoint"),
    "dcn_v2": _each("dcn_v2"),
    "backbone": {"represent": {"name": "backbone"}, "predict": {"name": "linear"}},
}

__all__ = ["MODELS", "PARTS", "part_class"]
