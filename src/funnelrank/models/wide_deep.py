"""Wide & Deep Learning for Recommender Systems (Cheng et al., DLRS 2016, arXiv 1606.07792).

    p(y = 1 | x) = sigmoid(w_wide . phi(x) + w_deep . a(x) + b)

    phi(x)    declared cross products of the row's ids: features of kind `cross`
    a(x)      an MLP on the embeddings of everything else

Both learn together, the wide weights by FTRL with L1 and the deep part by Adagrad. A wide weight is a number per
value of a cross and task; a cross that is read here has no embedding and is no input of the deep part. Which raw
features also stand in the wide part the paper leaves to the application (its own has crosses alone): `side: [lr, wide]`
adds them all.
"""

from __future__ import annotations

from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec


class Wide(nn.Module):
    """z_o = sum_c w_oc: a weight per value of each declared cross, and output. crosses [B, C, O] -> [B, O]."""

    needs = Needs(crosses=True)
    splits = True
    reads = {}

    def __init__(self, spec: Spec):
        super().__init__()

    def forward(self, x: Inputs) -> Tensor:
        return x.crosses.sum(1)
