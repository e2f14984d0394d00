"""The graph that only answers says what the model serves, whatever the model; and a user's part is done once."""

from dataclasses import replace

import pytest
import torch
from made import batch, config, layout, model
from models.test_every_model import VARIANTS

from funnelrank.models import MODELS
from funnelrank.ranker import RankingModel
from funnelrank.schema import resolve
from funnelrank.scorer import Lookup, Network, Scorer, frozen, padded, splits, with_tables

NORMED = [{"name": n, "represent": {"norm": "batch"}} for n in ("aitm", "mmoe", "ple", "deepfm")]
OVER = [{"name": "apg", "represent": {"middle": 16}}, {"name": "din", "prepare": [{"name": "din", "softmax": True}]},
        {"name": "m2m", "prepare": [{"name": "mha", "length": 2}, "scenario_view"]},
        {"name": "aitm", "reading": "conditional"}]

FLAT_ALONE = ("aitm", "shared_bottom", "mmoe", "omoe", "cgc", "ple", "esmm", "escm2_ips", "escm2_dr", "dcmt", "dbmtl",
              "single_task", "dnn")


def made(said, **rest):
    settings = config(said, **rest)
    m = model(settings)
    generator = torch.Generator().manual_seed(9)
    for name, tensor in m.state_dict().items():            # as after training: nothing stands where it started
        if tensor.is_floating_point() and not name.startswith(("embedding", "calibration", "funnel")):
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.1)
    return m.eval(), resolve(settings)


def served(m, schema, rows):
    with torch.no_grad():
        said = m.served(rows)
    return [(said.given if o.given else said.mean)[:, o.task] for o in schema.served]


def close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("said", [{"name": n} for n in MODELS] + VARIANTS + NORMED + OVER, ids=str)
def test_the_graph_says_what_the_model_serves(said):
    m, schema = made(said)
    scorer, rows = Scorer(m, schema.served).eval(), batch(11)
    with torch.no_grad():
        close(scorer(*scorer.feed(rows).values()), served(m, schema, rows))


def test_apgs_wide_factors_are_multiplied_out_in_the_copy_that_answers():
    m, _ = made({"name": "apg", "represent": {"middle": 13, "rank": 4, "hidden": [8]}})
    copy = frozen(m)
    wide = lambda m: [n for n, p in m.slots.represent.named_parameters() if 13 in p.shape]
    assert wide(m) and not wide(copy)
    with torch.no_grad():
        torch.testing.assert_close(copy(batch()).logits, m(batch()).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("said", [{"name": n} for n in MODELS] + NORMED + [
    {"name": "aitm", "reading": "conditional"}], ids=str)
def test_a_model_that_reads_flat_alone_answers_behind_its_lookups(said):
    m, schema = made(said)
    scorer = Scorer(m, schema.served).eval()
    assert scorer.flat_alone == (said["name"] in FLAT_ALONE)
    if not scorer.flat_alone:
        return
    network, rows = Network(scorer).eval(), batch(11)
    user, each, whole = of_one_user(7)
    with torch.no_grad():
        close(network(*network.feed(rows).values()), served(m, schema, rows))
        fed = network.feed(each) | {"once": network.feed(whole)["once"][:1]}
        close(network(*fed.values()), served(m, schema, whole))


def of_one_user(rows: int):
    """The user's features of one row under the other features of many; and the same rows written out."""
    user, each = batch(1, seed=4), batch(rows, seed=5)
    shown, _ = user.bags(0)
    tags, offsets = each.bags(1)
    n = len(shown)
    whole = replace(each, ids=torch.cat([user.ids[:, :1].expand(rows, -1), each.ids[:, 1:]], 1),
                    values=torch.cat([shown.repeat(rows), tags]),
                    offsets=torch.cat([torch.arange(rows) * n, rows * n + offsets]))
    return user, each, whole


@pytest.mark.parametrize("said", [{"name": n} for n in ("aitm", "ple", "din", "m2m", "deepfm", "wide_deep")], ids=str)
def test_a_users_features_are_looked_up_once_for_all_rows(said):
    m, schema = made(said)
    scorer = Scorer(m, schema.served).eval()
    user, each, whole = of_one_user(9)
    fed = scorer.feed(each, user, torch.zeros(9, dtype=torch.int64))
    assert fed["list.shown"].shape[0] == fed["user_ids"].shape[0] == 1
    with torch.no_grad():
        close(scorer(*fed.values()), served(m, schema, whole))
        close(scorer.answer(each, user, torch.zeros(9, dtype=torch.int64)), served(m, schema, whole))


@pytest.mark.parametrize("rows", [1, 63, 300])
def test_rows_of_several_users_are_answered_in_their_order(rows):
    m, schema = made({"name": "aitm", "represent": {"hidden": [64, 16], "norm": "batch"}})
    scorer, each = Scorer(m, schema.served).eval(), batch(rows, seed=6)
    with torch.no_grad():
        close(scorer.answer(each, each, torch.arange(rows)), served(m, schema, each))
        close(scorer(*scorer.feed(each).values()), served(m, schema, each))


def test_models_that_read_flat_by_layers_alone_do_a_users_part_of_the_first_one_once():
    found = {n for n in MODELS if splits(model(config({"name": n})))}
    assert {"aitm", "shared_bottom", "mmoe", "omoe", "cgc", "ple", "esmm", "dbmtl", "deepfm", "single_task", "dnn",
            "wide_deep"} <= found
    assert not {"star", "hmoe", "apg", "m2m", "pepnet", "din", "pnn", "dcn_v2", "lr", "fm"} & found


def test_down_sampling_and_calibrators_are_inside():
    said = {"name": "esmm"}
    settings = config(said, calibrate={"method": "isotonic"}, data={
        "scenario": "tab", "user": "user", "negatives_kept": {"rate": 0.1, "task": "click"}})
    m, schema = model(settings).eval(), resolve(settings)
    m.calibration.line += torch.tensor([0.1, 0.2, -0.3])
    m.calibration.shift += torch.rand(m.calibration.shift.shape)
    scorer, rows = Scorer(m, schema.served).eval(), batch(11)
    with torch.no_grad():
        close(scorer(*scorer.feed(rows).values()), served(m, schema, rows))


def test_weighted_lists_are_pooled_by_their_weights():
    settings = config()
    torch.manual_seed(0)
    schema = resolve(settings)
    m = RankingModel(settings, schema, replace(layout(schema.task_names), weighted=True), {}).eval()
    scorer, rows = Scorer(m, schema.served).eval(), batch(11)
    rows.value_weights = torch.rand(len(rows.values))
    with torch.no_grad():
        close(scorer(*scorer.feed(rows).values()), served(m, schema, rows))


def test_freezing_leaves_no_batch_norm_and_shares_the_tables():
    m, _ = made({"name": "mmoe", "represent": {"norm": "batch"}})
    alone = frozen(m)
    assert not [x for x in alone.modules() if isinstance(x, torch.nn.BatchNorm1d)]
    assert [x for x in m.modules() if isinstance(x, torch.nn.BatchNorm1d)]           # the model itself is as it was
    assert alone.embedding.tables["width_4"].weight is m.embedding.tables["width_4"].weight


def test_small_tables_stay_within_their_rounding():
    m, schema = made({"name": "aitm"})
    table = m.embedding.tables["width_4"]
    w, index = table.weight, torch.arange(len(table.weight))
    assert ((Lookup(table, "int8")(index) - w).abs() <= w.abs().amax(1, keepdim=True) / 254 + 1e-9).all()
    assert torch.equal(Lookup(table, "fp16")(index), w.half().float())
    assert Lookup(table, "int8")(torch.tensor([0])).abs().sum() == 0                # PAD stays zeros
    small, rows = Scorer(m, schema.served, "int8").eval(), batch(11)
    with torch.no_grad():
        close(small(*small.feed(rows).values()), served(with_tables(m, "int8"), schema, rows))


def test_padding_puts_rows_side_by_side():
    assert padded(torch.tensor([5, 7, 2]), torch.tensor([0, 2, 2, 3])).tolist() == [[5, 7], [0, 0], [2, 0]]
    assert padded(torch.tensor([], dtype=torch.int64), torch.tensor([0, 0])).tolist() == [[0]]
