"""MLPs as EasyRec and TorchEasyRec describe them, as layers of ours."""

from __future__ import annotations

from funnelrank.imports.drawing import Mlp
from funnelrank.imports.source import Section

ACTIVATION = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid",
              "leaky_relu": "leaky_relu", "leakyrelu": "leaky_relu", "dice": "dice", "linear": "linear",
              "identity": "linear", "none": "linear", "": "linear"}
STARTS = "where weights start differs from run to run anyway; ours start as their layers say"


def dnn(section: Section, *, keras: bool = False, last_plain: bool = False) -> Mlp:
    """A DNN, or an MLP of the newer kind with its final layer's own settings; with batch norm unless it says not to.

    last_plain   the system itself leaves activation and norm out behind the last layer
    """
    hidden = tuple(section.wholes("hidden_units", to="hidden"))
    if any(not 0 < h < 10**6 for h in hidden):
        section.refused("hidden_units", "a layer has at least one unit, and fewer than a million")
        hidden = tuple(h for h in hidden if 0 < h < 10**6)
    n = len(hidden)
    act = activation(section, "activation", "relu")
    rates = section.numbers("dropout_ratio", to="dropout")
    if any(not 0 <= r < 1 for r in rates):
        section.refused("dropout_ratio", "a share of 0 to 1, and less than 1")
        rates = []
    rates = (rates + [0.0] * n)[:n]
    norm = "batch" if section.flag("use_bn", True, to="norm") else None
    acts, norms = [act] * n, [norm] * n
    if keras:
        section.ignored(STARTS, "initializer")
        section.ignored("a bias before batch norm changes nothing, and ours have one" if norm else
                        "layers have a bias here", "use_bias", "use_final_bias")
        section.ignored("predictions are those of tasks", "add_to_outputs")
        if section.flag("use_bn_after_activation"):
            section.approximated("use_bn_after_activation", "batch norm stands before the activation")
        if n:
            norms[-1] = "batch" if section.flag("use_final_bn", True, to="norm of the last layer") else None
            acts[-1] = activation(section, "final_activation", act if section.has("activation") else "relu")
            if section.has("last_layer_no_activation") and section.flag("last_layer_no_activation"):
                acts[-1] = "linear"
            if section.has("last_layer_no_batch_norm") and section.flag("last_layer_no_batch_norm"):
                norms[-1] = None
    if last_plain and n:
        acts[-1], norms[-1] = "linear", None
    return Mlp(hidden, tuple(acts), tuple(rates), tuple(norms), section.line)


def mlp(section: Section) -> Mlp:
    """An MLP; without a norm unless it says so."""
    hidden = tuple(h for h in section.wholes("hidden_units", "hidden") if 0 < h < 10**6)
    n = len(hidden)
    rates = [r for r in section.numbers("dropout_ratio", "dropout") if 0 <= r < 1]
    rates = (rates * n if len(rates) == 1 else rates + [0.0] * n)[:n]
    act = activation(section, "activation", "nn.ReLU")
    norm = "batch" if section.flag("use_bn", to="norm") else "layer" if section.flag("use_ln", to="norm") else None
    if section.flag("use_bn") and section.flag("use_ln"):
        section.approximated("use_ln", "a layer has one norm, here of the batch")
    if not section.flag("bias", True):
        section.approximated("bias", "layers have a bias here")
    else:
        section.carried("bias", "layers have a bias here")
    return Mlp(hidden, (act,) * n, tuple(rates), (norm,) * n, section.line)


def activation(section: Section, key: str, default: str) -> str:
    """One of our activations for the name that a source gives one."""
    said = section.text(key, default)
    name = said.lower().removeprefix("tf.nn.").removeprefix("tf.keras.activations.").removeprefix("nn.")
    if name in ACTIVATION:
        return ACTIVATION[name]
    if name in ("prelu", "elu", "selu"):
        section.approximated(key, f"leaky_relu stands for {said}, which we have not")
        return "leaky_relu"
    section.refused(key, f"there is no activation '{said}'; write relu, gelu, silu, tanh or dice")
    return "relu"
