"""Networks drawn as blocks: what papers say in files of their own, wiring, names, and what is refused."""

import pytest
import torch
from graph import exported
from made import batch, config, model, pick

from funnelrank.errors import ConfigError
from funnelrank.models.layers import LAYERS

MLP = lambda of, *hidden, **keys: {"inputs": of, "layer": {"name": "mlp", "hidden": list(hidden), **keys}}


def drawn(blocks, outputs=None, packages=None, **rest):
    said = {"blocks": blocks} | ({"outputs": outputs} if outputs else {}) | ({"packages": packages} if packages else {})
    return {"name": "backbone", "represent": said, **rest}


def copied(a, b, names):
    """The weights of model b into a: `names` maps a's prefixes to b's; heads and tables have the same names."""
    theirs, mine = b.state_dict(), a.state_dict()
    for name in mine:
        other = name
        for ours, their in names.items():
            if name.startswith("slots.represent.drawing.blocks." + ours):
                other = name.replace("slots.represent.drawing.blocks." + ours, their)
        mine[name] = theirs[other].view_as(mine[name])               # a stack of one is a layer
    a.load_state_dict(mine)
    assert len(mine) == len(theirs), "a weight of the paper's has no place in the drawing"
    return a.double().eval(), b.double().eval()


def agree(drawing, paper, names):
    same(*copied(model(config(drawing), seed=3), model(config(paper), seed=4), names))


def agree_by(drawing, paper, theirs_of, heads=("", ""), **keys):
    """As `agree`, where a block's weight is a part of the paper's: theirs_of(block, rest of its name, kind, theirs)."""
    a, b = model(config(drawing, **keys), seed=1).double().eval(), model(config(paper, **keys), seed=2).double().eval()
    theirs, mine = b.state_dict(), a.state_dict()
    for name in mine:
        block, _, rest = name.partition("drawing.blocks.")[2].partition("_.")
        mine[name] = theirs_of(block, rest, name.rsplit(".", 1)[1], theirs) if block else theirs[name.replace(*heads)]
    a.load_state_dict(mine)
    same(a, b)


def same(a, b):
    rows = batch(40, tasks=len(a.tasks), seed=2)
    rows.numbers = rows.numbers.double()
    with torch.no_grad():
        torch.testing.assert_close(a(rows).logits, b(rows).logits, atol=1e-12, rtol=1e-12)


def test_one_mlp_block_is_the_plain_mlp():
    agree(drawn({"bottom": MLP("all", 8)}), {"name": "single_task", "represent": {"hidden": [8], "per": "all"}},
          {"bottom_.steps.0.mlps.0.": "slots.represent.mlp."})


def test_one_block_a_task_is_a_tower_a_task():
    tasks = ("click", "cart", "buy")
    agree_by(drawn({t: MLP("all", 8, 4) for t in tasks}, {t: t for t in tasks}),
             {"name": "single_task", "represent": {"hidden": [8, 4]}},
             lambda block, rest, kind, theirs: theirs[
                 f"slots.represent.mlp.layers.{rest.split('.')[3]}.linear.{kind}"][tasks.index(block)])


def test_experts_drawn_as_a_block_are_mmoe():
    agree(drawn({"experts": {"inputs": "all", "layer": {"name": "mmoe", "gates": 3, "experts": 2, "hidden": [8]}}}),
          {"name": "mmoe", "represent": {"experts": 2, "hidden": [8]}, "predict": "linear"},
          {"experts_.steps.0.": "slots.represent."})


def test_levels_drawn_as_blocks_are_ple():
    level = {"name": "ple", "tasks": 3, "own": 2, "shared": 1, "hidden": [8]}
    agree(drawn({"first": {"inputs": "all", "layer": level},
                 "second": {"inputs": "first", "layer": {**level, "last": True}}}),
          {"name": "ple", "represent": {"own": 2, "shared": 1, "hidden": [8]}, "predict": "linear"},
          {"first_.steps.0.level.": "slots.represent.levels.0.", "second_.steps.0.level.": "slots.represent.levels.1."})


def test_transfers_drawn_as_blocks_are_aitm():
    """Towers are read off one stack; all steps share their attention's weights by hand."""
    blocks = {"towers": {"inputs": "all", "layer": {"name": "mlp", "hidden": [6]}, "repeat": 3},
              "cart": {"inputs": [{"of": "towers", "take": 0}, {"of": "towers", "take": 1}], "merge": "list",
                       "layer": "ait"},
              "buy": {"inputs": ["cart", {"of": "towers", "take": 2}], "merge": "list", "layer": "ait"},
              "click": {"inputs": [{"of": "towers", "take": 0}]}}

    def theirs_of(block, rest, kind, theirs):
        if block == "towers":
            return theirs[f"slots.represent.mlp.layers.0.linear.{kind}"][int(rest.split(".")[1])]
        step = {"cart": "0_1", "buy": "1_2"}[block]
        return theirs["slots.transfer." + rest.split("transfer.")[1].replace("gates.0_1", f"gates.{step}")]

    agree_by(drawn(blocks, {t: t for t in ("click", "cart", "buy")}), {"name": "aitm", "represent": {"hidden": [6]}},
             theirs_of)


def test_relations_drawn_as_blocks_are_dbmtl():
    blocks = {"bottom": MLP("all", 8), "towers": {**MLP("bottom", 4), "repeat": 3},
              "click": {"inputs": [{"of": "towers", "take": 0}]},
              "cart": MLP([{"of": "towers", "take": 1}, "click"], 4),
              "buy": MLP([{"of": "towers", "take": 2}, "cart"], 4)}

    def theirs_of(block, rest, kind, theirs):
        if block == "bottom":
            return theirs[f"slots.represent.mlp.layers.0.linear.{kind}"]
        if block == "towers":
            return theirs[f"slots.transfer.towers.layers.0.linear.{kind}"][int(rest.split(".")[1])]
        child = {"cart": 1, "buy": 2}[block]
        return theirs[f"slots.transfer.relations.{child}.layers.0.linear.{kind}"]

    agree_by(drawn(blocks, {t: t for t in ("click", "cart", "buy")}),
             {"name": "dbmtl", "represent": {"hidden": [8]}, "transfer": {"tower": [4]}}, theirs_of)


def test_attention_drawn_as_a_block_is_din():
    agree(drawn({"interest": {"inputs": [{"of": "shown", "form": "history"}],
                              "layer": {"name": "target_attention", "hidden": [5]}},
                 "deep": MLP(["all", "interest"], 8)}),
          {"name": "din", "prepare": [{"name": "din", "hidden": [5]}],
           "represent": {"hidden": [8], "activation": "relu", "per": "all"}},
          {"interest_.steps.0.unit.": "slots.prepare.0.units.0.", "deep_.steps.0.mlps.0.": "slots.represent.mlp."})


def test_pairs_beside_an_mlp_drawn_as_blocks_are_deepfm():
    agree(drawn({"numbers": {"inputs": [{"of": "all", "form": "numbers"}],
                             "layer": {"name": "number_vectors", "width": 4}},
                 "vectors": {"inputs": [{"of": "all", "form": "fields"}, "numbers"], "merge": "stack"},
                 "pairs": {"inputs": "vectors", "layer": "bi_interaction"},
                 "deep": MLP("all", 8),
                 "both": {"inputs": ["deep", "pairs"]}}),
          {"name": "shared_bottom", "represent": {"name": "deepfm", "hidden": [8], "per": "all"}, "predict": "linear"},
          {"numbers_.steps.0.": "slots.represent.vectors.", "deep_.steps.0.mlps.0.": "slots.represent.mlp."})


def test_gated_layers_drawn_as_a_block_are_one_tower_of_ppnet():
    keys = {"hidden": [8, 4], "gate": 6, "position": "output"}

    def theirs_of(block, rest, kind, theirs):
        rest = rest.removeprefix("steps.0.")
        where = rest if rest.startswith("gates") else f"layers.{rest.split('.')[1]}.{kind}"
        return theirs[f"slots.predict.{where}"][0]

    agree_by(drawn({"tower": {"inputs": ["all", "user", "item"], "merge": "list", "layer": {"name": "ppnet", **keys}}}),
             {"represent": "flat", "predict": {"name": "ppnet", **keys}}, theirs_of,
             heads=("slots.predict.linear", "slots.predict.head"), tasks={"click": {}})


def test_the_order_in_which_blocks_are_written_changes_nothing():
    blocks = {"bottom": MLP("all", 8), "click": MLP("bottom", 4), "gate": {
        "inputs": ["bottom", "scenario"], "merge": "list", "layer": {"name": "gate", "hidden": 4}},
        "buy": MLP(["gate", "click"], 5)}
    outputs = {"click": "click", "cart": "click", "buy": "buy"}
    a = model(config(drawn(blocks, outputs)), seed=7)
    b = model(config(drawn(dict(reversed(blocks.items())), outputs)), seed=7)
    for name, p in a.state_dict().items():
        assert torch.equal(p, b.state_dict()[name]), name
    assert torch.equal(a.eval()(batch()).logits, b.eval()(batch()).logits)


def test_a_block_more_leaves_the_others_weights_as_they_were():
    a = model(config(drawn({"bottom": MLP("all", 8)})), seed=7)
    more = {"more": MLP("all", 4), "bottom": MLP("all", 8), "both": {"inputs": ["bottom", "more"]}}
    b = model(config(drawn(more)), seed=7)
    weight = "slots.represent.drawing.blocks.bottom_.steps.0.mlps.0.layers.0.linear.weight"
    assert torch.equal(a.state_dict()[weight], b.state_dict()[weight])


def test_a_package_is_drawn_anew_for_each_that_uses_it_unless_it_is_shared():
    blocks = lambda: {"a": {"inputs": "all", "package": "deep"}, "b": {"inputs": "all", "package": "deep"},
                      "both": {"inputs": ["a", "b"]}}
    inner = {"one": MLP("input", 6), "two": MLP("one", 4)}
    package = lambda **keys: {"deep": {"blocks": inner, "output": "two", **keys}}
    own = model(config(drawn(blocks(), packages=package())))
    shared = model(config(drawn(blocks(), packages=package(shared=True))))
    count = lambda m: sum(p.numel() for p in m.slots.represent.parameters())
    assert count(own) == 2 * count(shared)
    h = shared.eval().slots.represent(shared.embedding(batch()))
    assert torch.equal(h[..., :4], h[..., 4:])
    h = own.eval().slots.represent(own.embedding(batch()))
    assert not torch.equal(h[..., :4], h[..., 4:])
    shared.load_state_dict(shared.state_dict())


def test_merging_by_number_and_slices_are_what_they_say():
    m = model(config(drawn({"a": MLP("all", 6), "b": MLP("all", 6), "s": {"inputs": ["a", "b"], "merge": "stack"},
                            "sum": {"inputs": ["a", "b"], "merge": "sum"},
                            "product": {"inputs": ["a", "b"], "merge": "product"},
                            "mean": {"inputs": ["a", "b"], "merge": "mean"},
                            "cut": {"inputs": [{"of": "a", "take": [1, 3]}, {"of": "s", "take": 1}]},
                            "most": {"inputs": "s", "layer": {"name": "reduce", "by": "max"}},
                            "out": {"inputs": ["sum", "product", "mean", "cut", "most"]}}))).eval()
    values = m.slots.represent.drawing(m.embedding(batch()), None)
    a, b = values["a"], values["b"]
    assert torch.equal(values["sum"], a + b) and torch.equal(values["product"], a * b)
    torch.testing.assert_close(values["mean"], (a + b) / 2)
    assert torch.equal(values["cut"], torch.cat([a[:, 1:3], b], 1))
    assert torch.equal(values["most"], torch.maximum(a, b))


def test_blocks_named_one_by_one_are_those_that_a_block_puts_side_by_side():
    parts = {"a": MLP("all", 6), "b": MLP("all", 4)}
    agree(drawn({**parts, "both": {"inputs": ["a", "b"], "merge": "concat"}, "out": MLP("both", 5)}),
          drawn({**parts, "out": MLP(["a", "b"], 5)}), {})


# one input of each kind that a layer can take, and what else it must be told
GIVEN = {"stack": [{"of": "all", "form": "fields"}], "history": [{"of": "shown", "form": "history"}], "vector": ["all"],
         "pair": ["deep", "wide"]}
TOLD = {"mlp": {"hidden": [5]}, "linear": {"width": 5}, "residual": {"hidden": [5]}, "dropout": {"rate": 0.5},
        "mmoe": {"gates": 2}, "ple": {"tasks": 2}, "ppnet": {"hidden": [5]}, "mask_block": {"width": 5, "hidden": 4}}
TAKES = {"reduce": "stack", "fm": "stack", "bi_interaction": "stack", "dot": "stack", "autoint": "stack",
         "self_attention": "stack", "senet": "stack", "bilinear": "stack", "pool": "history",
         "target_attention": "history", "bst": "history", "gate": "pair", "ppnet": "pair", "mask_block": "pair",
         "ait": "pair"}


def with_layer(name):
    kind = TAKES.get(name, "vector")
    wide = {"deep": MLP("all", 6), "wide": MLP("all", 6)} if kind == "pair" else {}
    blocks = {**wide, "it": {"inputs": GIVEN[kind], **({"merge": "list"} if kind == "pair" else {}),
                             "layer": {"name": name, **TOLD.get(name, {})}},
              "out": MLP(["it", "all"], 6)}
    if kind == "history":
        blocks["it"]["inputs"] = GIVEN[kind]
    return drawn(blocks, "out")


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_learns_and_its_rows_do_not_know_each_other(name):
    m, rows = model(config(with_layer(name))), batch(60, seed=3)
    m.train()
    m(rows).logits.square().sum().backward()
    silent = [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    m.embedding.take_gradients()
    assert not silent
    torch.testing.assert_close(m.eval()(rows).logits[[5, 2]], m(pick(rows, [5, 2])).logits, atol=1e-6, rtol=1e-5)


def test_every_layer_is_exported_with_an_open_number_of_rows():
    blocks = {"deep": MLP("all", 6), "wide": MLP("all", 6)}
    for name in LAYERS:
        blocks[f"the_{name}"] = with_layer(name)["represent"]["blocks"]["it"]
    blocks["out"] = MLP([f"the_{name}" for name in LAYERS], 6)
    exported(model(config(drawn(blocks, "out"))))


A = MLP("all", 4)


@pytest.mark.parametrize("said, sentence", [
    (drawn({"a": MLP("b", 4), "b": MLP("a", 4)}, "a"), r"blocks.a.inputs: reads what it gives \(a > b > a\)"),
    (drawn({"a": MLP("al", 4)}), r"no block and no group of features 'al'.*did you mean 'all'"),
    (drawn({"a": {"inputs": []}}), r"blocks.a.inputs: found a list; must be a text or a list of at least 1"),
    (drawn({"a": A, "b": A}), r"outputs: missing, and 'a' and 'b' are read by no block"),
    (drawn({"a": A, "b": A}, "a"), r"blocks.b: nothing that comes out depends on this block"),
    (drawn({"a": A}, {"click": "a", "cart": "a"}), r"outputs: no block for 'buy'"),
    (drawn({"a": A}, {"click": "a", "cart": "a", "by": "a", "buy": "a"}),
     r"outputs.by: no task 'by'.*did you mean 'buy'"),
    (drawn({"user": A}), r"blocks.user: 'user' already stands for features"),
    (drawn({"a": {"inputs": "all", "layer": "mlpp"}}), r"layer.name: found 'mlpp'.*did you mean 'mlp'"),
    (drawn({"a": {"inputs": "all", "layer": {"name": "mlp", "hiden": [3]}}}), r"layer.hiden: unknown key"),
    (drawn({"a": {"inputs": "all", "package": "p"}}), r"blocks.a.package: no package 'p'"),
    (drawn({"a": A}, packages={"p": {"blocks": {"b": MLP("input", 3)}, "output": "b"}}), r"packages.p: no block uses"),
    (drawn({"a": {"inputs": "all", "package": "p"}}, packages={"p": {"blocks": {
        "b": {"inputs": "input", "package": "p"}}, "output": "b"}}), r"packages.p: uses itself \(p > p\)"),
    (drawn({"a": {"inputs": ["all"], "layer": "fm"}}), r"blocks.a.layer: takes a stack of vectors of one width.*"
                                                         r"form: fields"),
    (drawn({"a": A, "b": MLP("all", 5), "c": {"inputs": ["a", "b"], "merge": "sum"}}),
     r"blocks.c.merge: sum: inputs are a vector of 4, a vector of 5"),
    (drawn({"a": A, "b": MLP("all", 5), "c": {"inputs": ["a", "b"], "merge": "list", "layer": "ait"}}),
     r"blocks.c.layer: towers have widths 4, 5"),
    (drawn({"a": A, "b": MLP([{"of": "a", "take": [2, 9]}], 4)}), r"inputs\[0\]: take: \[2, 9\] lies outside 0 .. 4"),
    (drawn({"a": {"inputs": "shown", "layer": "pool"}}), r"read a sequence as \{of: shown, form: history\}"),
    (drawn({"a": {"inputs": [{"of": "tags", "form": "history"}], "layer": "pool"}}),
     r"no sequence 'tags' with a target"),
    (drawn({"a": {"inputs": "all", "layer": {"name": "mmoe", "gates": 2}}}),
     r"gives 2 vectors, and there are 3 tasks"),
    (drawn({"a": {"inputs": "all", "layer": {"name": "mlp", "hidden": [4, 2], "dropout": [0.1]}}}),
     r"dropout: has 1 entries for 2 layers"),
])
def test_what_is_wrong_with_a_drawing_is_said_with_its_place(said, sentence):
    with pytest.raises(ConfigError, match="model.represent." + ".*" + sentence):
        model(config(said))


def test_a_fault_of_a_drawing_has_its_line(tmp_path):
    from funnelrank.config import load
    path = tmp_path / "drawn.yaml"
    path.write_text("features: {item: id}\ntasks: {click: {}}\nmodel:\n  name: backbone\n  represent:\n    blocks:\n"
                    "      a:\n        inputs: [al]\n        layer: {name: mlp, hidden: [4]}\n")
    with pytest.raises(ConfigError, match=r"drawn.yaml:8:18: model.represent.blocks.a.inputs\[0\]: no block"):
        load(path)


def test_widths_that_cannot_meet_are_told_by_check_all_at_once_with_their_lines(tmp_path):
    from funnelrank.config import load
    path = tmp_path / "drawn.yaml"
    path.write_text(
        "features: {user: id, item: id, seen: {kind: sequence, space: item}, age: number}\n"
        "tasks: {click: {}, buy: {after: click}}\n"
        "model:\n  name: backbone\n  represent:\n    packages:\n      p:\n        output: cut\n        blocks:\n"
        "          cut: {inputs: [{of: input, take: [0, 9]}]}\n"
        "    blocks:\n"
        "      a: {inputs: all, layer: {name: mlp, hidden: [8]}}\n"
        "      b: {inputs: item, layer: {name: mlp, hidden: [6]}}\n"
        "      sum: {inputs: [a, b], merge: sum}\n"
        "      ait: {inputs: [a, b], merge: list, layer: ait}\n"
        "      heads: {inputs: [a, a], merge: list, layer: {name: ait, heads: 3}}\n"
        "      many: {inputs: [{of: all, form: fields}], layer: {name: self_attention, heads: 5}}\n"
        "      past: {inputs: [{of: seen, form: history}], layer: {name: mlp, hidden: [4]}}\n"
        "      ten: {inputs: b, package: p}\n"
        "      three: {inputs: all, layer: {name: mlp, hidden: [4]}, repeat: 3}\n"
        "      none: {inputs: [{of: item, form: numbers}]}\n"
        "      behind: {inputs: [sum, ait, heads, many, past, ten, none]}\n"
        "    outputs: {click: behind, buy: three}\n")
    with pytest.raises(ConfigError) as said:
        load(path)
    told = [m.removeprefix(str(path)) for m in said.value.messages]
    wanted = [":10:26: model.represent.packages.p.blocks.cut.inputs[0]: take: [0, 9] lies outside 0 .. 6",
              ":14:29: model.represent.blocks.sum.merge: sum: inputs are a vector of 8, a vector of 6",
              ":15:42: model.represent.blocks.ait.layer: towers have widths 6, 8",
              ":16:44: model.represent.blocks.heads.layer: heads: 3 heads do not divide towers of width 8",
              ":17:49: model.represent.blocks.many.layer: heads: 5 heads do not divide the width 16",
              ":18:51: model.represent.blocks.past.layer: takes a vector, and is given a history",
              ":21:23: model.represent.blocks.none.inputs[0]: there is no number in 'item'"]
    assert len(told) == len(wanted)
    for message, sentence in zip(told, wanted):
        assert sentence in message, told


@pytest.mark.parametrize("blocks, fits", [
    ({"a": {"inputs": "user"}, "b": MLP("all", 17), "c": {"inputs": ["a", "b"], "merge": "sum"}}, True),
    ({"a": {"inputs": "user"}, "b": MLP("all", 18), "c": {"inputs": ["a", "b"], "merge": "sum"}}, True),
    ({"a": {"inputs": "item"}, "b": MLP("all", 18), "c": {"inputs": ["a", "b"], "merge": "sum"}}, False),
    ({"a": MLP("user", 7), "b": MLP("all", 18), "c": {"inputs": ["a", "b"], "merge": "sum"}}, False)])
def test_what_only_train_can_say_is_not_refused_before(blocks, fits):
    """`user` is a vector of 16 and a number, with or without another that says where it is missing."""
    from funnelrank.config import load
    said = {"features": {"user": {"role": "user"}, "age": {"kind": "number", "role": "user"},
                         "item": {"role": "item"}}, "tasks": {"click": {}}, "model": drawn(blocks, "c")}
    if fits:
        load(said)
    else:
        with pytest.raises(ConfigError, match="model.represent.blocks.c.merge: sum: inputs are a vector of"):
            load(said)


SIZED = {"user": {"role": "user"}, "item": {}, "tab": {}, "tags": {"kind": "bag"},
         "cut": {"kind": "number", "buckets": 4},
         "seen": {"kind": "sequence", "space": "item"}, "liked": {"kind": "sequence"},
         "prices": {"kind": "sequence", "space": "cut"}, "price": {"kind": "number", "indicator": True, "role": "item"},
         "age": {"kind": "number", "default": 3, "role": "user"}, "sure": {"kind": "number", "indicator": False},
         "face": {"kind": "vector", "size": 5, "indicator": True}, "n": {"kind": "length", "of": "seen"},
         "m": {"kind": "match", "of": "item", "within": "seen"}, "x": {"kind": "cross", "of": ["item", "tab"]},
         "lists": "off"}
HISTORY = {"a": MLP(["all", "some"], 4), "p": {"inputs": [{"of": "prices", "form": "history"}], "layer": "pool"},
           "h": {"inputs": [{"of": "seen", "form": "history"}], "layer": "pool"}, "out": {"inputs": ["a", "p", "h"]}}


@pytest.mark.parametrize("blocks, more", [
    ({"a": MLP("all", 4)}, {}), (HISTORY, {}), ({"a": MLP("all", 4)}, {"side": ["wide"]}),
    ({"a": MLP("all", 4)}, {"prepare": ["din"]}), ({"a": MLP("all", 4)}, {"prepare": ["variational_dropout"]}),
    ({"a": MLP([{"of": "some", "form": "fields"}, {"of": "all", "form": "numbers"}], 4)}, {})])
def test_sizes_that_check_knows_are_those_of_the_model(blocks, more):
    from funnelrank.config import load, shipped_schema
    from funnelrank.data.encode import Encoder
    from funnelrank.models.backbone import features_of
    from funnelrank.ranker import RankingModel
    from funnelrank.sizes import known_sizes
    mixed = "fields" not in str(blocks)
    said = load({"features": SIZED, "tasks": {"click": {}, "buy": {}},
                 "embedding": {"width": 4, "groups": {"some": ["item", "price", "tags", "m"]},
                               "spaces": {"tab": {"width": 6 if mixed else 4}}},
                 "model": drawn(blocks, None, None, **more)})
    known = known_sizes(said.settings, said.schema, shipped_schema())
    encoder = Encoder.unfitted(said.schema, 12)
    built = RankingModel(said.settings, said.schema, encoder.layout, {})
    true = features_of(built.slots.prepare[-1].spec if more.get("prepare") else built.spec)
    for name in ("flat", "width"):
        assert getattr(known, name) in (None, getattr(true, name)), name
    for name in ("groups", "fields", "numbers", "histories"):
        for key, size in getattr(known, name).items():
            if key in getattr(true, name):
                assert size in (None, getattr(true, name)[key]), (name, key)
    if not more:
        assert known.flat == true.flat and known.fields == true.fields and known.numbers == true.numbers
        assert dict(known.histories) == dict(true.histories)


def test_a_written_config_reads_back_the_same(tmp_path):
    from funnelrank.config import dump, load
    path = tmp_path / "drawn.yaml"
    path.write_text("features: {item: id, price: number}\ntasks: {click: {}}\nmodel:\n  name: backbone\n  represent:\n"
                    "    packages: {p: {blocks: {b: {inputs: input, layer: layer_norm}}, output: b}}\n"
                    "    blocks: {a: {inputs: all, layer: {name: mlp, hidden: [4]}}, c: {inputs: a, package: p}}\n")
    one = load(path)
    (tmp_path / "again.yaml").write_text(dump(one))
    assert load(tmp_path / "again.yaml") == one
    assert one.settings.model["represent"]["blocks"]["a"]["layer"]["activation"] == "relu"
