"""FNN (arXiv 1601.02376), against its equations in float64."""

import torch
from made import inputs, spec

from funnelrank.models.fnn import FactorisationSupported


def test_each_task_reads_fms_vectors_and_its_own_weights():
    sizes = spec()
    part, x = FactorisationSupported(sizes, hidden=(5, 4), per="task").double(), inputs(sizes)
    for b in range(6):
        for t in range(2):
            z = torch.cat([x.flat[b], x.linear[b, :, t]])
            for layer in part.mlp.layers:
                z = torch.tanh(layer["linear"].weight[t] @ z + layer["linear"].bias[t])
            torch.testing.assert_close(part(x)[b, t], z, atol=1e-10, rtol=0)


def test_one_network_for_all_reads_every_tasks_weights():
    sizes = spec()
    part, x = FactorisationSupported(sizes, hidden=(5,)).double(), inputs(sizes)
    linear = part.mlp.layers[0]["linear"]
    z = torch.cat([x.flat, x.linear.flatten(1)], 1)
    torch.testing.assert_close(part(x)[:, 0], torch.tanh(z @ linear.weight[0].T + linear.bias[0]), atol=1e-10, rtol=0)
