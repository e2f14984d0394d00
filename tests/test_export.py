"""One graph for other runtimes: what it writes, and that it says what the model says for any number of rows."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from made import batch, config, model

from funnelrank import ConfigError, Ranker, api, cli
from funnelrank.config import load
from funnelrank.export import differences, export, opened, program_of, triton_config, unstack
from funnelrank.schema import resolve
from funnelrank.scorer import Scorer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """AITM under batch norm as ONNX."""
    settings = config({"name": "aitm", "represent": {"hidden": [16, 8], "norm": "batch"}})
    m, schema = model(settings).eval(), resolve(settings)
    folder = tmp_path_factory.mktemp("onnx") / "out"
    return m, schema, folder, export(m, schema, "shop", "onnx", folder, rows=batch(11))


def test_onnx_differs_by_rounding_alone(made):
    _, _, folder, done = made
    assert set(done.differences) == {"click", "cart", "cart|click", "buy", "buy|cart"}
    assert max(done.differences.values()) < 1e-6
    assert done.bytes == sum(f.stat().st_size for f in folder.rglob("*"))


def test_a_graph_has_no_logarithm_of_a_sigmoid(made):
    import onnx
    nodes = onnx.load(made[2] / "model.onnx", load_external_data=False).graph.node
    sigmoids = {out for n in nodes if n.op_type == "Sigmoid" for out in n.output}
    assert any(n.op_type == "Softplus" for n in nodes)
    assert not [n for n in nodes if n.op_type == "Log" and sigmoids & set(n.input)]


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_any_number_of_rows_and_any_lengths_of_lists(made, rows):
    m, schema, folder, _ = made
    run, scorer = opened("onnx", folder, "shop"), Scorer(m, schema.served)
    for seed in (3, 4):
        each = batch(rows, seed=seed)
        assert max(differences(m, schema, each, run(scorer.feed(each))).values()) < 1e-6


def test_onnx_has_its_tables_beside_it_and_no_loop_no_batch_norm(made):
    import onnx
    folder = made[2]
    assert (folder / "model.onnx.data").stat().st_size > 0
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert not {n.op_type for n in graph.node} & {"Loop", "Scan", "SequenceEmpty", "BatchNormalization"}
    table = next(i for i in graph.initializer if i.name.endswith("width_4.weight"))
    assert table.data_location == onnx.TensorProto.EXTERNAL


def test_inputs_json_says_what_the_graph_asks_for(made):
    import onnxruntime
    folder = made[2]
    said = json.loads((folder / "inputs.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert {i.name for i in session.get_inputs()} <= {i["name"] for i in said["inputs"]}
    assert [o.name for o in session.get_outputs()] == [o["name"] for o in said["outputs"]]
    assert {"name": "list.shown", "datatype": "INT64", "shape": ["users", "length.shown"],
            "features": ["shown"]} in said["inputs"]


def test_histories_that_attention_reads_export_too():
    settings = config({"name": "din"})
    m, schema = model(settings).eval(), resolve(settings)
    scorer = Scorer(m, schema.served).eval()
    program, each = program_of(scorer), batch(5, seed=6)
    found = program.module()(*scorer.feed(each).values())
    assert max(differences(m, schema, each, [t.detach().numpy() for t in found]).values()) < 1e-6


def test_a_graph_of_one_size_only_is_refused():
    m, schema = model().eval(), resolve(config())
    answer = m.funnel.answer
    m.funnel.answer = lambda said, o: answer(said, o) * len(said.mean)
    with pytest.raises(ConfigError, match="a graph for one number of rows alone"):
        program_of(Scorer(m, schema.served).eval())


class Stacks(torch.nn.Module):

    def forward(self, x, y):
        both = torch.stack([x, y], 1).expand(-1, 2, -1)
        a, b = both.unbind(1)
        along = torch.stack([x, y], 0)[1]              # an output: it keeps its name
        return a + 2 * b + both[:, -1], both.sum(1), along


def test_what_is_stacked_and_taken_apart_again_is_used_as_it_was():
    x, y = torch.randn(2, 3, 4).unbind(0)
    program = torch.export.export(Stacks(), (x, y))
    unstack(program.graph_module.graph)
    for found, wanted in zip(program.module()(x, y), Stacks()(x, y), strict=True):
        assert torch.equal(found, wanted)
    names = [str(n.target) for n in program.graph_module.graph.nodes]
    assert names.count("aten.stack.default") == 2 and "aten.unbind.int" not in names      # one summed, one an output


def test_triton_is_told_every_tensor():
    settings = config()
    scorer = Scorer(model(settings), resolve(settings).served)
    said = triton_config(scorer, "shop")
    assert said.startswith('name: "shop"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n')
    for feed in scorer.inputs:
        assert f'name: "{feed.name}"' in said
    assert '{ name: "buy|cart", data_type: TYPE_FP32, dims: [ -1 ] }' in said


def test_a_folder_in_the_way_stays(made, tmp_path):
    m, schema, _, _ = made
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        export(m, schema, "shop", "torch", tmp_path)
    assert (tmp_path / "mine").read_text() == "x"


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("run")
    rows = pa.table({"item": ["a", "b"] * 40, "price": list(range(80)), "click": [0, 1] * 40})
    settings = load({"features": {"item": "id", "price": "number"}, "tasks": {"click": {}}, "embedding": {"width": 4},
                     "model": {"name": "single_task", "represent": {"hidden": [4]}},
                     "train": {"threads": 1, "out": str(folder / "shop")}})
    api.train(settings, train=rows)
    return folder / "shop"


def test_an_artefact_keeps_some_rows_and_what_is_served_of_them(run):
    golden = Ranker.load(run).golden
    assert len(golden.rows) == 16 and golden.rows.column_names == ["item", "price"]
    assert golden.scores.equals(Ranker.load(run).predict(golden.rows))
    assert golden.difference(golden.scores)[0] == 0
    other = golden.scores.set_column(0, "click", pa.array(golden.scores["click"].to_numpy() + np.float32(0.5)))
    assert golden.difference(other) == (pytest.approx(0.5), "click")


def test_the_command_says_size_time_and_differences(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "out"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "click" in said and "differs by" in said and "p50" in said and "loads in" in said
    assert (tmp_path / "out" / "model.pt2").exists()
    assert cli.main(["export", str(run), "--to", "torch", "--out", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_graph_that_differs_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "CLOSE", -1.0)
    with pytest.raises(api.ArtefactError, match="output 'click' differs from the model"):
        api.export(run, "torch", tmp_path / "out", verify=True)


def test_smaller_tables_are_measured_on_labelled_rows(run, tmp_path):
    rows = pa.table({"item": ["a", "b"] * 40, "price": list(range(80)), "click": [0, 1] * 40})
    done, measured = api.export(run, "torch", tmp_path / "out", tables="int8", rows=rows)
    assert measured["click"][0] == pytest.approx(measured["click"][1], abs=0.05)
    assert max(done.differences.values()) < 1e-6                 # from the model with the tables rounded alike


def test_a_missing_library_is_one_sentence(run, tmp_path, monkeypatch):
    from funnelrank import export as module
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--to onnx: needs 'onnx', 'onnxscript' and 'onnxruntime'.*export\]"):
        api.export(run, "onnx", tmp_path / "out")


def test_sides_are_those_of_roles():
    scorer = Scorer(model(), resolve(config()).served)
    assert [f.name for f in scorer.inputs] == ["user_ids", "list.shown", "ids", "numbers", "list.tags", "row_user"]
    assert scorer.users.ids == ["user"] and scorer.rows.ids == ["item", "tab", "item_x_tab"]
    assert scorer.users.lists == ["shown"] and scorer.rows.lists == ["tags"]
