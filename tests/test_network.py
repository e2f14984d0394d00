"""Drawings of models: what boxes cost, which features reach which task, and a picture whose parts do not overlap."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from funnelrank import api, cli
from funnelrank.config import load
from funnelrank.data.encode import Encoder
from funnelrank.models import MODELS
from funnelrank.network import ROWS, VALUES, drawn, some_rows, words
from funnelrank.picture import svg
from funnelrank.ranker import RankingModel
from funnelrank.simulate import simulate
from funnelrank.train.floor import multiply_adds

FEATURES = {"user": {"min_count": 1}, "item": {"min_count": 1}, "tab": "id", "price": "number",
            "brand": {"role": "item"}, "shown": {"kind": "sequence", "space": "item"}, "tags": {"kind": "bag"},
            "image": {"kind": "vector", "size": 3}, "item_x_tab": {"kind": "cross", "of": ["item", "tab"]},
            "lists": "off"}


def config(model, features=None, tasks=None, **embedding):
    return load({"data": {"scenario": "tab", "user": "user"}, "features": features or FEATURES,
                 "tasks": tasks or {"click": {}, "buy": {"after": "click"}}, "embedding": {"width": 4, **embedding},
                 "model": model})


BLOCKS = {"name": "backbone", "represent": {
    "blocks": {"bottom": {"inputs": "user", "layer": {"name": "mlp", "hidden": [6]}},
               "past": {"inputs": [{"of": "shown", "form": "history"}], "layer": "target_attention"},
               "cross": {"inputs": ["bottom", "past"], "layer": {"name": "mlp", "hidden": [5]}, "repeat": 2},
               "other": {"inputs": ["few", "bottom"], "layer": {"name": "linear", "width": 3}}},
    "outputs": {"click": "cross", "buy": "other"}}}
FEW = {"groups": {"few": ["price", "brand"]}}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_drawn_and_its_boxes_add_up(name):
    said = config(name if name != "backbone" else BLOCKS, **({"groups": FEW["groups"]} if name == "backbone" else {}))
    network = drawn(said)
    boxes = [b for b in network.boxes.values() if b.kind in ("part", "block")]
    assert sum(b.multiply_adds for b in boxes) == pytest.approx(network.multiply_adds)
    assert sum(b.parameters for b in boxes) == pytest.approx(network.parameters, abs=2)     # a sum's bias is no part's
    assert all(a in network.boxes and b in network.boxes for a, b, _ in network.edges)
    assert {t for of in network.reach.values() for t in of} == {"click", "buy"}
    assert len(words(network).splitlines()) > len(network.boxes) + len(network.reach)
    assert_picture(network)


def assert_picture(network):
    """Well-formed, every box with its title, and none over another."""
    tree = ET.fromstring(svg(network))
    tag = "{http://www.w3.org/2000/svg}"
    rects = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in tree.iter(f"{tag}rect")]
    assert len(rects) == len(network.boxes) == len([g for g in tree.iter(f"{tag}g") if g.find(f"{tag}title").text])
    for i, (x, y, w, h) in enumerate(rects):
        for a, b, c, d in rects[:i]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
    left, top, width, height = map(float, tree.get("viewBox").split())
    assert all(min(x, y) >= 0 and x + w <= width and y + h <= height for x, y, w, h in rects)


def test_a_row_costs_what_products_of_many_rows_cost_each():
    said = config("mmoe")
    layout = Encoder.unfitted(said.schema, VALUES).layout
    torch.manual_seed(0)
    settings = said.settings.model_copy(update={"embedding": said.settings.embedding.model_copy(update={
        "engine": "torch"})})
    model = RankingModel(settings, said.schema, layout, {})
    assert drawn(said).multiply_adds == pytest.approx(multiply_adds(model, some_rows(layout, ROWS)) / ROWS)


def test_parameters_and_costs_of_blocks_are_those_of_their_layers():
    network = drawn(config(BLOCKS, **FEW))
    box = {b.title: b for b in network.boxes.values()}
    assert (box["bottom"].parameters, box["bottom"].multiply_adds) == (4 * 6 + 6, 4 * 6)
    assert (box["cross"].parameters, box["cross"].gives) == (2 * ((6 + 4) * 5 + 5), "[B, 2, 5]")
    assert (box["other"].parameters, box["other"].multiply_adds) == ((5 + 6) * 3 + 3, (5 + 6) * 3)
    reads = lambda title: {network.boxes[a].title for a, b, _ in network.edges if b == box[title].name}
    assert reads("bottom") == {"user"} and reads("cross") == {"bottom", "past"} and reads("other") == {"few", "bottom"}


def test_what_reaches_a_task_is_what_its_blocks_read():
    reach = drawn(config(BLOCKS, **FEW)).reach
    yes = {t: {f for f, of in reach.items() if of[t] == "teaches"} for t in ("click", "buy")}
    assert yes == {"click": {"user", "shown", "item"}, "buy": {"user", "price", "brand"}}
    assert not any(of[t] == "reaches" for of in reach.values() for t in of)


def test_what_stands_behind_a_stop_gradient_reaches_and_does_not_teach():
    said = {"predict": {"name": "ppnet", "groups": ["item"]}, "represent": {"name": "backbone", "blocks": {
        "own": {"inputs": "item", "layer": {"name": "mlp", "hidden": [6]}}}}}
    reach = drawn(config(said)).reach
    assert {f for f, of in reach.items() if of["buy"] == "teaches"} == {"item", "brand"}
    assert reach["user"] == reach["price"] == {"click": "reaches", "buy": "reaches"}


def test_a_step_given_the_one_before_is_reached_by_what_reaches_that_one():
    features = {"a": "id", "b": "id", "c": "number"}
    blocks = {"name": "backbone", "reading": "conditional", "represent": {
        "blocks": {"one": {"inputs": "first", "layer": {"name": "linear", "width": 2}},
                   "two": {"inputs": "second", "layer": {"name": "linear", "width": 2}}},
        "outputs": {"click": "one", "buy": "two"}}}
    groups = {"groups": {"first": ["a"], "second": ["b", "c"]}}
    tasks = {"click": {}, "buy": {"after": "click"}}
    load_one = lambda model: load({"features": features, "tasks": tasks, "embedding": {"width": 4, **groups},
                                   "model": model})
    reach = drawn(load_one(blocks)).reach
    assert reach["b"] == {"click": "", "buy": "teaches"} and reach["a"] == {"click": "teaches", "buy": "teaches"}
    assert drawn(load_one({**blocks, "reading": "joint"})).reach["a"] == {"click": "teaches", "buy": ""}


def test_a_scenario_that_only_chooses_parameters_reaches():
    features = {"a": "id", "b": "number"}
    said = load({"data": {"scenario": "tab"}, "features": features, "tasks": {"click": {}}, "model": "star",
                 "embedding": {"width": 4}})
    assert drawn(said).reach["data.scenario"] == {"click": "reaches"}
    plain = load({"data": {"scenario": "tab"}, "features": features, "tasks": {"click": {}}, "model": "dnn"})
    assert "data.scenario" not in drawn(plain).reach


def test_names_that_are_no_xml_are_written_as_they_are():
    features = {"a<b>&": {"column": "x"}, "ü": "number"}
    network = drawn(load({"features": features, "tasks": {"<y>": {}}, "model": "dnn"}))
    assert_picture(network)
    assert "a<b>&" in "".join(ET.fromstring(svg(network)).itertext())


def test_describe_draws_a_config_and_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulate("log", rows=600, users=30, items=20, seed=1)
    (tmp_path / "a.yaml").write_text(
        "data: {dir: log, train: train.parquet, scenario: scenario}\n"
        "features: {item_id: id, scenario: id, price: number, gap: {kind: number, column: price, indicator: true}}\n"
        "tasks: {click: {}}\nmodel: mmoe\nembedding: {width: 4}\ntrain: {epochs: 1, threads: 1}\n")
    cli.main(["describe", "a.yaml", "--network", "--svg", "pictures/a.svg"])
    out = capsys.readouterr().out
    assert re.search(r"^mmoe .*experts 4.*\[B, 1, 128\]", out, re.M) and re.search(r"^price +yes$", out, re.M)
    assert "are known once train is read" in out and "pictures/a.svg: " in out
    first = (tmp_path / "pictures" / "a.svg").read_text()
    cli.main(["describe", "a.yaml", "--network", "--shapes"])
    assert "are known once train is read" not in capsys.readouterr().out
    run = api.train(load(tmp_path / "a.yaml"))
    found = api.network(run.folder)
    assert found.fitted and found.width == run.ranker.model.spec.flat
    assert found.parameters == sum(p.numel() for p in run.ranker.model.slots.parameters())
    assert np.isfinite(found.multiply_adds) and first.startswith("<svg ")
