"""Layers that a drawing's blocks hold (models/backbone.py). shapes.py says what each makes of its inputs' shapes.

A layer's constructor takes the shapes of its inputs, one unless the block says `merge: list`, and then its settings. A
stack that meets a layer of vectors is read with its entries side by side. Where a layer is a piece of a paper, its own
file has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from funnelrank import shapes as rules
from funnelrank.inputs import History, Relation, Spec
from funnelrank.models.aitm import InformationTransfer
from funnelrank.models.autoint import InteractingLayer
from funnelrank.models.dcn_v2 import CrossLayer
from funnelrank.models.din import ActivationUnit, attended
from funnelrank.models.fields import bi_interaction, pairs
from funnelrank.models.mlp import Rate, Widths
from funnelrank.models.pepnet import GateNU
from funnelrank.models.ple import Level
from funnelrank.nn.history import pooled
from funnelrank.nn.linear import ACTIVATIONS, MLP, Activation, Linear
from funnelrank.nn.norm import Norm
from funnelrank.shapes import Shape, width_of

Count = Annotated[int, Gt(0)]
Norms = Literal["batch", "layer"] | None


Value = Tensor | History


def flat(value: Value) -> Tensor:
    """[B, W] of a vector or a stack."""
    return value.flatten(1)


# ---- vectors

class MLPLayer(nn.Module):
    """Linear, norm, activation and dropout for each width; the last two the same for all layers, or a list."""

    def __init__(self, *shapes: Shape, hidden: Widths, activation: Activation | list[Activation] = "relu",
                 dropout: Rate | list[Rate] = 0.0, norm: Norms = None):
        super().__init__()
        self.out = rules.mlp(*shapes, hidden=hidden, activation=activation, dropout=dropout)
        each = [said if isinstance(said, list) else [said] * len(hidden) for said in (activation, dropout)]
        self.mlps = nn.ModuleList(MLP(a, [b], activation=act, dropout=drop, norm=norm) for a, b, act, drop in zip(
            [width_of(shapes[0]), *hidden], hidden, *each))

    def forward(self, x: Value) -> Tensor:
        x = flat(x)
        for mlp in self.mlps:
            x = mlp(x)
        return x


class LinearLayer(nn.Module):
    """y = W x + b."""

    def __init__(self, *shapes: Shape, width: Count, bias: bool = True):
        super().__init__()
        self.out = rules.linear(*shapes, width=width)
        self.linear = Linear(width_of(shapes[0]), width, bias=bias)

    def forward(self, x: Value) -> Tensor:
        return self.linear(flat(x))


class Cross(nn.Module):
    """Deep & Cross Network (Wang et al., ADKDD 2017): x_{l+1} = x_0 (w_l . x_l) + b_l + x_l."""

    def __init__(self, *shapes: Shape, layers: Count = 3):
        super().__init__()
        self.out = rules.same_vector(*shapes)
        W = self.out.width
        self.linear = nn.ModuleList(Linear(W, 1, bias=False) for _ in range(layers))
        self.bias = nn.Parameter(torch.zeros(layers, W))

    def forward(self, x: Value) -> Tensor:
        x0 = h = flat(x)
        for linear, b in zip(self.linear, self.bias):
            h = x0 * linear(h) + b + h
        return h


class CrossV2(nn.Module):
    """DCN-v2's cross layers, of full or low rank, or a mixture of low-rank experts (dcn_v2.py)."""

    def __init__(self, *shapes: Shape, layers: Count = 3, rank: Count | None = None, experts: Count = 1):
        super().__init__()
        self.out = rules.cross_v2(*shapes, rank=rank, experts=experts)
        self.layers = nn.ModuleList(CrossLayer(self.out.width, rank, experts, 1) for _ in range(layers))

    def forward(self, x: Value) -> Tensor:
        x0 = h = flat(x).unsqueeze(1)
        for layer in self.layers:
            h = layer(x0, h)
        return h.squeeze(1)


class Residual(nn.Module):
    """y = x + MLP(x), with a last linear layer back to the width of x."""

    def __init__(self, *shapes: Shape, hidden: Widths, activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Norms = None):
        super().__init__()
        self.out = rules.same_vector(*shapes)
        self.mlp = MLP(self.out.width, hidden, activation=activation, dropout=dropout, norm=norm)
        self.last = Linear(self.mlp.out, self.out.width)

    def forward(self, x: Value) -> Tensor:
        return flat(x) + self.last(self.mlp(flat(x)))


class Highway(nn.Module):
    """Highway networks (Srivastava et al., 2015): y = t o act(W x + b) + (1 - t) o x,  t = sigmoid(W_t x + b_t).

    carry    where b_t starts: below 0, a layer begins close to passing its input on
    """

    def __init__(self, *shapes: Shape, activation: Activation = "relu", carry: float = -1.0):
        super().__init__()
        self.out = rules.same_vector(*shapes)
        W = self.out.width
        self.change, self.gate = MLP(W, [W], activation=activation), Linear(W, W)
        nn.init.constant_(self.gate.bias, carry)

    def forward(self, x: Value) -> Tensor:
        x = flat(x)
        t = self.gate(x).sigmoid()
        return t * self.change(x) + (1 - t) * x


class LayerNorm(nn.Module):
    """Each row's vector, or each entry of a stack, with mean 0 and variance 1, scaled and shifted."""

    def __init__(self, *shapes: Shape):
        super().__init__()
        self.out = rules.same(*shapes)
        self.norm = nn.LayerNorm(self.out.width)

    def forward(self, x: Value) -> Tensor:
        return self.norm(x)


class BatchNorm(nn.Module):
    """Each number with the batch's mean and variance taken out; running averages of them at evaluation."""

    def __init__(self, *shapes: Shape):
        super().__init__()
        self.out = rules.same_vector(*shapes)
        self.norm = Norm("batch", self.out.width)

    def forward(self, x: Value) -> Tensor:
        return self.norm(flat(x))


class Activate(nn.Module):
    """An activation, number by number."""

    def __init__(self, *shapes: Shape, activation: Activation = "relu"):
        super().__init__()
        self.out = rules.activation(*shapes, activation=activation)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Value) -> Tensor:
        return self.activation(x)


class DropoutLayer(nn.Module):
    """Numbers left out at random while training."""

    def __init__(self, *shapes: Shape, rate: Rate):
        super().__init__()
        self.out, self.dropout = rules.same(*shapes), nn.Dropout(rate)

    def forward(self, x: Value) -> Tensor:
        return self.dropout(x)


# ---- stacks

class Reduce(nn.Module):
    """The sum, mean, largest or product of a stack's entries, number by number: [B, n, D] -> [B, D]."""

    def __init__(self, *shapes: Shape, by: Literal["sum", "mean", "max", "product"] = "sum"):
        super().__init__()
        self.by, self.out = by, rules.entry(*shapes)

    def forward(self, x: Tensor) -> Tensor:
        return {"sum": x.sum, "mean": x.mean, "max": x.amax, "product": x.prod}[self.by](1)


class FMLayer(nn.Module):
    """FM's pairs as one number: sum_{i<j} <v_i, v_j>. [B, n, D] -> [B, 1]."""

    def __init__(self, *shapes: Shape):
        super().__init__()
        self.out = rules.fm(*shapes)

    def forward(self, x: Tensor) -> Tensor:
        return bi_interaction(x).sum(1, keepdim=True)


class BiInteraction(nn.Module):
    """NFM's pooling: sum_{i<j} v_i o v_j. [B, n, D] -> [B, D]."""

    def __init__(self, *shapes: Shape):
        super().__init__()
        self.out = rules.entry(*shapes)

    def forward(self, x: Tensor) -> Tensor:
        return bi_interaction(x)


class Dot(nn.Module):
    """DLRM's interaction: <v_i, v_j> of all i < j. [B, n, D] -> [B, n (n - 1) / 2]."""

    def __init__(self, *shapes: Shape):
        super().__init__()
        self.out, n = rules.dot(*shapes), shapes[0].count
        i, j = pairs(n)
        self.register_buffer("at", i * n + j, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2)).flatten(1).index_select(1, self.at)


class AutoIntLayer(nn.Module):
    """One interacting layer of AutoInt (autoint.py): [B, n, D] -> [B, n, heads * width]."""

    def __init__(self, *shapes: Shape, heads: Count = 2, width: Count = 16, residual: bool = True):
        super().__init__()
        self.out = rules.autoint(*shapes, heads=heads, width=width)
        self.layer = InteractingLayer(shapes[0].width, heads, width, residual, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(2)).squeeze(2)


class SelfAttention(nn.Module):
    """A layer of the Transformer (Vaswani et al., 2017) over a stack's entries, normalised behind each sum.

        u = norm(x + MultiHead(x)),   y = norm(u + W_2 relu(W_1 u + b_1) + b_2)
    """

    def __init__(self, *shapes: Shape, heads: Count = 2, hidden: Count = 64, dropout: Rate = 0.0):
        super().__init__()
        self.out = rules.self_attention(*shapes, heads=heads)
        self.layer = EncoderLayer(self.out.width, heads, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class EncoderLayer(nn.Module):
    """x [B, L, D] -> [B, L, D]; entries where `there` [B, L] is false are seen by none."""

    def __init__(self, D: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.project, self.back = Linear(D, 3 * D), Linear(D, D)
        self.first, self.last = Linear(D, hidden), Linear(hidden, D)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        q, k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in self.project(x).chunk(3, 2))
        score = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])                   # [B, heads, L, L]
        if there is not None:
            score = score.masked_fill(~there[:, None, None], torch.finfo(score.dtype).min)
        mixed = self.back((score.softmax(3) @ v).transpose(1, 2).flatten(2))     # [B, L, D]
        u = self.norms[0](x + self.dropout(mixed))
        return self.norms[1](u + self.dropout(self.last(self.first(u).relu())))


class SENet(nn.Module):
    """FiBiNET's squeeze and excitation (Huang et al., RecSys 2019).

        s_i = mean(v_i),   a = relu(W_2 relu(W_1 s)),   v_i <- a_i v_i

    reduction    the hidden layer has n / reduction numbers, at least 1
    """

    def __init__(self, *shapes: Shape, reduction: Count = 3):
        super().__init__()
        self.out = rules.senet(*shapes)
        n = self.out.count
        self.first = Linear(n, max(1, n // reduction), bias=False)
        self.last = Linear(max(1, n // reduction), n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.last(self.first(x.mean(2)).relu()).relu()                       # [B, n]
        return x * a.unsqueeze(2)


class Bilinear(nn.Module):
    """FiBiNET's pairs: p_ij = (v_i W) o v_j for all i < j. [B, n, D] -> [B, n (n - 1) / 2, D].

    weights    one W for all pairs, one for each i, or one for each pair
    """

    def __init__(self, *shapes: Shape, weights: Literal["all", "each", "pair"] = "all"):
        super().__init__()
        self.out, self.weights = rules.bilinear(*shapes), weights
        n, D = shapes[0]
        i, j = pairs(n)
        self.register_buffer("i", i, persistent=False)
        self.register_buffer("j", j, persistent=False)
        self.weight = nn.Parameter(torch.empty({"all": 1, "each": n - 1, "pair": len(i)}[weights], D, D))
        nn.init.uniform_(self.weight, -1 / math.sqrt(D), 1 / math.sqrt(D))

    def forward(self, x: Tensor) -> Tensor:
        if self.weights == "pair":
            left = torch.einsum("bpd,pde->bpe", x[:, self.i], self.weight)
        elif self.weights == "each":
            left = torch.einsum("bnd,nde->bne", x[:, :-1], self.weight)[:, self.i]
        else:
            left = (x @ self.weight[0])[:, self.i]
        return left * x[:, self.j]


# ---- numbers

class NumberVectors(nn.Module):
    """Numbers as FM has them, x_i v_i: [B, N] -> [B, N, width]."""

    def __init__(self, *shapes: Shape, width: Count = 16):
        super().__init__()
        self.out = rules.number_vectors(*shapes, width=width)
        self.weight = nn.Parameter(torch.empty(*self.out).normal_(0, 0.01))

    def forward(self, x: Value) -> Tensor:
        return flat(x).unsqueeze(2) * self.weight


class Periodic(nn.Module):
    """Numbers as vectors (Gorishniy et al., NeurIPS 2022).

        v_i = relu(W_i [sin(2 pi c_i x_i), cos(2 pi c_i x_i)] + b_i)

    [B, N] -> [B, N, width].

    frequencies    how many c each number learns
    sigma          they start from N(0, sigma)
    """

    def __init__(self, *shapes: Shape, width: Count = 16, frequencies: Count = 16,
                 sigma: Annotated[float, Gt(0)] = 0.1):
        super().__init__()
        self.out = rules.number_vectors(*shapes, width=width)
        self.c = nn.Parameter(torch.randn(self.out.count, frequencies) * sigma)
        self.linear = Linear(2 * frequencies, width, stack=self.out.count)

    def forward(self, x: Value) -> Tensor:
        angle = 2 * math.pi * self.c * flat(x).unsqueeze(2)                      # [B, N, K]
        return self.linear(torch.cat([angle.sin(), angle.cos()], 2)).relu()


class AutoDis(nn.Module):
    """Numbers as vectors (Guo et al., KDD 2021): a softmax over learnt vectors of each number's own.

        h = leaky_relu(w x),   s = W h + alpha h,   v = sum_k softmax(s / temperature)_k e_k

    buckets        how many vectors each number mixes
    keep           alpha: how much of h stays in s
    temperature    small ones pick one vector, large ones mix all
    """

    def __init__(self, *shapes: Shape, width: Count = 16, buckets: Count = 16, keep: float = 0.1,
                 temperature: Annotated[float, Gt(0)] = 1.0):
        super().__init__()
        self.out, self.keep, self.temperature = rules.number_vectors(*shapes, width=width), keep, temperature
        N = self.out.count
        self.weight = nn.Parameter(torch.randn(N, buckets))
        self.mix = Linear(buckets, buckets, bias=False, stack=N)
        self.vectors = nn.Parameter(torch.randn(N, buckets, width) * 0.1)

    def forward(self, x: Value) -> Tensor:
        h = F.leaky_relu(flat(x).unsqueeze(2) * self.weight)                     # [B, N, K]
        score = (self.mix(h) + self.keep * h) / self.temperature
        return torch.einsum("bnk,nkd->bnd", score.softmax(2), self.vectors)


# ---- histories

class Pool(nn.Module):
    """The mean or sum of a history's entries; an empty one is zeros."""

    def __init__(self, *shapes: Shape, by: Literal["mean", "sum"] = "mean"):
        super().__init__()
        self.by, self.out = by, rules.pool(*shapes)

    def forward(self, x: History) -> Tensor:
        summed = pooled(x.values.new_ones(x.values.shape[0]), x.values, x.offsets)
        return summed if self.by == "sum" else summed / x.offsets.diff().clamp(min=1).unsqueeze(1)


class Attention(nn.Module):
    """DIN's pooling through the row's own item (din.py): [n, D] -> [B, D].

    hidden     widths of the activation unit, with Dice between its layers
    softmax    weigh by softmax over a history instead (not the paper)
    target     the item stands beside the pooled history: [B, 2 D]
    """

    def __init__(self, *shapes: Shape, hidden: Widths = (36,), softmax: bool = False, target: bool = False):
        super().__init__()
        self.out = rules.target_attention(*shapes, target=target)
        self.unit, self.softmax, self.target = ActivationUnit(shapes[0].width, hidden), softmax, target

    def forward(self, x: History) -> Tensor:
        said = attended(self.unit, x, self.softmax)
        return torch.cat([said, x.target], 1) if self.target else said


class BST(nn.Module):
    """Behavior Sequence Transformer (Chen et al., 2019): the item stands behind its history, and all attend to all.

    Entries and item get vectors of their places, counted back from the item; Transformer layers; then the paper's
    vectors side by side, or their mean.

    heads, hidden   of each layer
    layers          how many
    length          at most so many of the last entries are read
    out             what comes out: the item's own vector (target), or the mean of all (mean)
    """

    def __init__(self, *shapes: Shape, heads: Count = 2, hidden: Count = 64, layers: Count = 1, length: Count = 50,
                 dropout: Rate = 0.0, out: Literal["target", "mean"] = "target"):
        super().__init__()
        self.out, self.length, self.mean = rules.bst(*shapes, heads=heads), length, out == "mean"
        D = self.out.width
        self.places = nn.Parameter(torch.randn(length + 1, D) * 0.01)            # 0: the item
        self.layers = nn.ModuleList(EncoderLayer(D, heads, hidden, dropout) for _ in range(layers))

    def forward(self, x: History) -> Tensor:
        e, there = padded(x, self.length)                                        # [B, L, D], latest first
        e = torch.cat([x.target.unsqueeze(1), e], 1) + self.places[:e.shape[1] + 1]
        there = F.pad(there, (1, 0), value=True)
        for layer in self.layers:
            e = layer(e, there)
        if not self.mean:
            return e[:, 0]
        return (e * there.unsqueeze(2)).sum(1) / there.sum(1, keepdim=True)


def padded(history: History, length: int) -> tuple[Tensor, Tensor]:
    """The last `length` entries of each row, the latest first [B, length, D], and which places hold one [B, length]."""
    values, offsets = history.values, history.offsets
    back = torch.arange(length, device=offsets.device)
    there = back < offsets.diff().unsqueeze(1)                                   # [B, L]
    at = (offsets[1:].unsqueeze(1) - 1 - back).clamp(min=0)
    held = torch.cat([values, values.new_zeros(1, values.shape[1])])             # place n holds zeros
    return held[torch.where(there, at, values.shape[0])], there


# ---- several inputs

class Gate(nn.Module):
    """Gate NU of PEPNet (pepnet.py): delta([others, sg x]) o x of the first input x; EPNet where the others say where.

    hidden    width of the gate's hidden layer
    gamma     the most that a gate can say; at gamma / 2 = 1 it changes nothing
    sees      x itself opens the gate, too, without learning through it
    """

    def __init__(self, *shapes: Shape, hidden: Count = 64, gamma: Annotated[float, Gt(0)] = 2.0, sees: bool = True):
        super().__init__()
        self.sees, self.out = sees, rules.gate(*shapes)
        x, *others = map(width_of, shapes)
        self.gate = GateNU(sum(others) + sees * x, hidden, x, gamma=gamma)

    def forward(self, x: Value, *others: Value) -> Tensor:
        x = flat(x)
        return x * self.gate(torch.cat([*map(flat, others), *([x.detach()] if self.sees else [])], 1))


class PPNetLayer(nn.Module):
    """PPNet (pepnet.py): an MLP on the first input whose layers are gated by the others and sg x.

    hidden      widths of the MLP
    gate        width of each gate's hidden layer
    position    gate what each layer reads (input), or what it gives (output)
    """

    def __init__(self, *shapes: Shape, hidden: Widths, gate: Count = 64, position: Literal["input", "output"] = "input",
                 gamma: Annotated[float, Gt(0)] = 2.0, activation: Activation = "relu", dropout: Rate = 0.0,
                 sees: bool = True):
        super().__init__()
        self.position, self.sees, self.out = position, sees, rules.ppnet(*shapes, hidden=hidden)
        x, *others = map(width_of, shapes)
        widths = [x, *hidden]
        self.gates = nn.ModuleList(GateNU(sum(others) + sees * x, gate, w, gamma=gamma)
                                   for w in (widths[:-1] if position == "input" else hidden))
        self.layers = nn.ModuleList(MLP(a, [b], activation=activation, dropout=dropout)
                                    for a, b in zip(widths, hidden))

    def forward(self, x: Value, *others: Value) -> Tensor:
        x = flat(x)
        prior = torch.cat([*map(flat, others), *([x.detach()] if self.sees else [])], 1)
        for gate, layer in zip(self.gates, self.layers):
            delta = gate(prior)
            x = layer(delta * x) if self.position == "input" else delta * layer(x)
        return x


class MaskBlock(nn.Module):
    """MaskNet (Wang et al., DLP-KDD 2021): relu(norm(W_h (mask o x) + b)),  mask = W_2 relu(W_1 e + b_1) + b_2.

    The first input is x, the second e, the embedded features; with one input it is both.

    width     of what comes out
    hidden    width of the mask's hidden layer
    """

    def __init__(self, *shapes: Shape, width: Count, hidden: Count):
        super().__init__()
        self.out = rules.mask_block(*shapes, width=width)
        x, e = width_of(shapes[0]), width_of(shapes[-1])
        self.mask = nn.Sequential(Linear(e, hidden), nn.ReLU(), Linear(hidden, x))
        self.linear, self.norm = Linear(x, width), nn.LayerNorm(width)

    def forward(self, x: Value, e: Value | None = None) -> Tensor:
        x = flat(x)
        return self.norm(self.linear(self.mask(x if e is None else flat(e)) * x)).relu()


class Experts(nn.Module):
    """MMoE (mmoe.py): experts on the first input, gates on the second if there is one: -> [B, gates, H].

    gates    how many mixtures come out, one for each task as a rule
    """

    def __init__(self, *shapes: Shape, gates: Count, experts: Count = 4, hidden: Widths = (128,),
                 activation: Activation = "relu", dropout: Rate = 0.0, norm: Norms = None):
        super().__init__()
        self.out = rules.mmoe(*shapes, gates=gates, hidden=hidden)
        self.experts = MLP(width_of(shapes[0]), hidden, activation=activation, dropout=dropout, norm=norm,
                           stack=experts)
        self.gates = Linear(width_of(shapes[-1]), experts, bias=False, stack=gates)

    def forward(self, x: Value, asked: Value | None = None) -> Tensor:
        weight = self.gates(flat(x if asked is None else asked)).softmax(2)      # [B, gates, N]
        return torch.bmm(weight, self.experts(flat(x)))


class PLELevel(nn.Module):
    """One level of PLE (ple.py): a vector, or the level before's stack -> [B, tasks + 1, H], the shared state last.

    last    nobody reads the shared state: [B, tasks, H]
    """

    def __init__(self, *shapes: Shape, tasks: Count, own: Annotated[int, Ge(0)] = 2,
                 shared: Annotated[int, Ge(0)] = 2, hidden: Widths = (128,), last: bool = False,
                 activation: Activation = "relu", dropout: Rate = 0.0, norm: Norms = None):
        super().__init__()
        self.out = rules.ple(*shapes, tasks=tasks, own=own, shared=shared, hidden=hidden, last=last)
        self.stacked = rules.is_level(shapes[0], tasks)
        self.level = Level(shapes[0].width if self.stacked else width_of(shapes[0]), tasks, own, shared, last=last,
                           hidden=hidden, activation=activation, dropout=dropout, norm=norm)

    def forward(self, x: Value) -> Tensor:
        own, common = (x[:, :-1], x[:, -1]) if self.stacked else (flat(x), flat(x))
        own, common = self.level(own, common)
        return own if common is None else torch.cat([own, common.unsqueeze(1)], 1)


class AITLayer(nn.Module):
    """AITM's transfer (aitm.py): what earlier steps pass on, one input each, and the step's own tower, the last input.

    The keys are those of `transfer: ait`.
    """

    def __init__(self, *shapes: Shape, variant: Literal["self_gate", "cross", "own_keys"] = "self_gate",
                 heads: Count = 1, gate: Widths | None = (), gate_activation: Activation = "relu", dropout: Rate = 0.0,
                 stop_gradient: bool = False):
        super().__init__()
        self.out = rules.ait(*shapes, heads=heads)
        n, H = len(shapes), self.out.width
        spec = Spec(flat=0, tasks=n, views=n, hidden=H, relations=tuple(Relation(p, n - 1) for p in range(n - 1)))
        self.transfer = InformationTransfer(spec, variant=variant, heads=heads, gate=gate,
                                            gate_activation=gate_activation, dropout=dropout,
                                            stop_gradient=stop_gradient)

    def forward(self, *towers: Value) -> Tensor:
        return self.transfer(torch.stack([flat(t) for t in towers], 1))[:, -1]


LAYERS: dict[str, type[nn.Module]] = {
    "mlp": MLPLayer, "linear": LinearLayer, "cross": Cross, "cross_v2": CrossV2, "residual": Residual,
    "highway": Highway, "layer_norm": LayerNorm, "batch_norm": BatchNorm, "activation": Activate,
    "dropout": DropoutLayer, "reduce": Reduce, "fm": FMLayer, "bi_interaction": BiInteraction, "dot": Dot,
    "autoint": AutoIntLayer, "self_attention": SelfAttention, "senet": SENet, "bilinear": Bilinear,
    "number_vectors": NumberVectors, "periodic": Periodic, "autodis": AutoDis,
    "pool": Pool, "target_attention": Attention, "bst": BST, "gate": Gate,
    "ppnet": PPNetLayer, "mask_block": MaskBlock, "mmoe": Experts, "ple": PLELevel, "ait": AITLayer,
}


def build_layer(said: dict[str, Any], shapes: Sequence[Shape]) -> nn.Module:
    """{name: mlp, hidden: [64]} -> MLPLayer(*shapes, hidden=[64]). Raises Misfit where shapes do not suit it."""
    return LAYERS[said["name"]](*shapes, **{k: v for k, v in said.items() if k != "name"})
