"""Small layers as one operation, against the same layers in float64 by torch."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from funnelrank import kernels
from funnelrank.nn import small
from funnelrank.nn.linear import MLP

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="the package was built without a C++ compiler")


class Written(nn.Module):
    """An MLP of n networks by torch's own layers, n of them one after another, with copied weights."""

    def __init__(self, mine: MLP, shared: bool):
        super().__init__()
        self.shared, self.n = shared, mine.stack or 1
        self.linears, self.norms, self.relus = [], [], []
        for layer in mine.layers:
            weight, bias = (t.detach().double().requires_grad_() if t is not None else None for t in (
                layer["linear"].weight, layer["linear"].bias))
            self.linears.append((weight, bias))
            norm = None
            if "norm" in layer:
                norm = nn.BatchNorm1d(layer["norm"].norm.num_features).double()
                norm.load_state_dict(layer["norm"].norm.state_dict())
            self.norms.append(norm)
            self.relus.append(isinstance(layer["activation"], nn.ReLU))

    def forward(self, x):
        parts = [x if self.shared else x[:, i] for i in range(self.n)]
        for (weight, bias), norm, relu in zip(self.linears, self.norms, self.relus):
            w = weight if weight.dim() == 3 else weight.unsqueeze(0)
            b = [None] * self.n if bias is None else bias.view(self.n, -1)
            h = torch.cat([nn.functional.linear(p, w[i], b[i]) for i, p in enumerate(parts)], 1)
            h = h if norm is None else norm(h)
            parts = list((h.relu() if relu else h).chunk(self.n, 1))
        return torch.stack(parts, 1) if self.n > 1 else parts[0]


CASES = [   # rows, in, hidden, stack, shared, norm, activation
    (300, 7, (5,), None, True, None, "relu"),
    (256, 16, (16, 16), None, True, "batch", "relu"),
    (1000, 24, (32, 16), 2, True, "batch", "relu"),
    (129, 16, (8,), 3, False, "batch", "relu"),
    (2, 3, (1, 1), 2, False, "batch", "linear"),
    (1, 9, (4, 2), 2, False, None, "relu"),
    (515, 400, (33, 17), 2, True, "batch", "relu"),          # the first product is too wide for the kernel
    (515, 400, (32, 16), 2, True, None, "relu"),
    (9000, 16, (24, 8), 2, False, "batch", "relu"),
]


@pytest.mark.parametrize("rows, width, hidden, stack, shared, norm, activation", CASES)
def test_an_mlp_of_small_layers_is_its_layers_written_out(rows, width, hidden, stack, shared, norm, activation):
    torch.manual_seed(rows)
    mine = MLP(width, hidden, stack=stack, norm=norm, activation=activation)
    with torch.no_grad():
        for name, p in mine.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p) * 0.3)
    theirs = Written(mine, shared or stack is None)
    x = torch.randn(rows, width) if shared or stack is None else torch.randn(rows, stack, width)
    x = 2 * x + 1
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    y, z = mine(a), theirs(b)
    assert y.shape == z.shape
    torch.testing.assert_close(y, z.float(), rtol=1e-4, atol=1e-4)
    # where a ReLU's input is next to 0 the two may fall on either side: there is no such row among these
    direction = torch.randn(z.shape)
    y.backward(direction)
    z.backward(direction.double())
    near = lambda p, q: torch.testing.assert_close(p, q.float(), rtol=2e-3, atol=2e-3 * float(q.abs().max()) + 1e-6)
    near(a.grad, b.grad)
    for layer, (weight, bias), other in zip(mine.layers, theirs.linears, theirs.norms):
        near(layer["linear"].weight.grad, weight.grad)
        if other is None:
            near(layer["linear"].bias.grad, bias.grad)
        else:                                               # a bias before a norm has no gradient but rounding
            near(layer["norm"].norm.weight.grad, other.weight.grad)
            near(layer["norm"].norm.bias.grad, other.bias.grad)
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                near(getattr(layer["norm"].norm, name).float(), getattr(other, name).double())


@needs_kernels
def test_a_large_batch_with_threads_has_the_bits_of_one_thread():
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            mlp, x = MLP(40, (16, 8), stack=3, norm="batch"), torch.randn(20_000, 40, requires_grad=True)
            mlp(x).square().sum().backward()
            found.append([x.grad, *(p.grad for p in mlp.parameters()), *mlp.buffers()])
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@needs_kernels
def test_what_is_not_finite_stays_so():
    mlp = MLP(8, (8,), norm=None)
    x = torch.randn(20, 8)
    x[3, 2] = float("nan")
    y = mlp(x)
    assert y[3].isnan().all() and y[:3].isfinite().all() and y[4:].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("norm", [None, "batch"])
def test_a_second_backward_of_one_step_gives_the_same(norm):
    torch.manual_seed(0)
    mlp, x = MLP(16, (16, 8), stack=2, norm=norm), torch.randn(200, 16, requires_grad=True)
    y = mlp(x).square().sum()
    one = torch.autograd.grad(y, [x, *mlp.parameters()], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(one, torch.autograd.grad(y, [x, *mlp.parameters()])))


@needs_kernels
def test_it_is_asked_for_small_layers_in_training_alone(monkeypatch):
    asked = []
    apply = small._Small.apply
    monkeypatch.setattr(small._Small, "apply", lambda *a: asked.append(len(a[1])) or apply(*a))
    mlp, x = MLP(16, (16, 8), norm="batch"), torch.randn(64, 16)
    mlp(x)
    assert asked == [2]                                     # both layers at once
    with torch.no_grad():
        mlp(x)
    mlp.eval()
    mlp.double()(x.double())
    with small.kernels.off():
        MLP(16, (16,))(x)
    MLP(16, (small.MOST_COLUMNS + 1,))(x)
    MLP(16, (16,), norm="layer")(x)                         # its product is small all the same
    assert asked == [2, 1]


def test_the_kernel_touches_only_what_it_owns(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    flags = ["-std=c++17", "-O1", "-DROWS_PORTABLE", "-ffp-contract=off", "-Wno-psabi", "-pthread",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    (tmp_path / "trial.cpp").write_text("int main() {}\n")
    if compiler is None or subprocess.run([compiler, *flags, tmp_path / "trial.cpp", "-o", tmp_path / "trial"],
                                          capture_output=True).returncode:
        pytest.skip("no C++ compiler with sanitizers")
    driver = Path(__file__).with_name("small_driver.cpp")
    subprocess.run([compiler, *flags, driver, "-o", tmp_path / "driver"], check=True)
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True,
                          env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"})       # threads wait to the end
    assert done.returncode == 0 and done.stdout == "100 networks\n", done.stderr[-3000:]
