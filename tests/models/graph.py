"""A model as a graph that takes tensors, with an open number of rows."""

import torch
from made import batch
from torch import nn

from funnelrank.batch import Batch


class FromTensors(nn.Module):
    """Tensors in, logits out."""

    def __init__(self, m):
        super().__init__()
        self.model = m

    def forward(self, ids, numbers, values, offsets, scenario):
        rows = ids.shape[0]
        return self.model(Batch(ids, numbers, values, offsets, scenario, numbers.new_zeros(rows, 3),
                                numbers.new_ones(rows), scenario)).logits


def tensors(rows):
    return rows.ids, rows.numbers, rows.values, rows.offsets, rows.scenario


def exported(m):
    """Exports m on 12 rows, and asks the graph about other numbers of rows."""
    m.eval()
    rows, values = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("values", min=2, max=100_000)
    with torch.no_grad():
        graph = torch.export.export(FromTensors(m), tensors(batch(12)), dynamic_shapes=(
            {0: rows}, {0: rows}, {0: values}, {0: 2 * rows + 1}, {0: rows})).module()
        for n, seed in ((12, 0), (31, 1), (200, 2)):
            other = batch(n, seed=seed)
            torch.testing.assert_close(graph(*tensors(other)), m(other).logits, atol=1e-6, rtol=1e-5)
