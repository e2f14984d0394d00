"""A task may own several of the outputs; no part minds."""

import pytest
import torch
from made import batch, config, model

from funnelrank.loss import task_losses
from funnelrank.models import PARTS

TASKS = {"click": {}, "spend": {"kind": "ziln", "after": "click"}, "like": {}}
HEADS = [{"represent": {"name": "mlp", "per": per, "hidden": [8]}, "predict": p, "side": s}
         for p in PARTS["predict"] for per in ("all", "task") for s in ([], ["lr", "wide", "auxiliary"])]
MODELS = [*HEADS, {"name": "lr"}, {"name": "hmoe"}, {"name": "fnn"}, {"name": "m2m"},
          {"represent": {"name": "fnn", "per": "all", "hidden": [8]}, "predict": "linear"}]


@pytest.mark.parametrize("said", MODELS, ids=lambda m: "-".join(str(v) for v in m.values()))
def test_every_output_learns_from_its_own_task_alone(said):
    m, rows = model(config(said, TASKS)), batch(100)
    rows.labels[:, 1] *= 20
    logits = m.train()(rows).logits
    assert logits.shape == (100, 5) and logits.isfinite().all()
    for t, own in enumerate([[0], [1, 2, 3], [4]]):
        z = logits.detach().requires_grad_()
        task_losses(m.funnel, m.funnel(z), rows.labels, rows.weight)[t].backward()
        assert (z.grad.abs().sum(0) > 0).nonzero().flatten().tolist() == own
    logits.square().sum().backward()
    assert not [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())]


@pytest.mark.parametrize("said", [h for h in HEADS if h["side"]],
                         ids=lambda m: f"{m['predict']}-{m['represent']['per']}")
def test_outputs_of_other_tasks_do_not_move_with_their_number(said):
    """A model whose middle task has three outputs, and one where it has one, with the same weights elsewhere."""
    wide = model(config(said, TASKS))
    narrow = model(config(said, TASKS | {"spend": {"kind": "count", "after": "click"}}))
    kept, weights = torch.tensor([0, 1, 4]), wide.state_dict()
    for name, value in narrow.state_dict().items():
        for axis, (n, w) in enumerate(zip(value.shape, weights[name].shape)):
            if n != w:                                   # [O] or [O * places]
                each = torch.arange(n // 3)
                weights[name] = weights[name].index_select(axis, (kept.unsqueeze(1) * len(each) + each).flatten())
    narrow.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(wide.eval()(batch()).logits[:, kept], narrow.eval()(batch()).logits)
