"""An artefact as one graph, from encoded ids to every served output: for runtimes that know no funnelrank.

    torch    model.pt2, torch.export: reads wherever torch is
    onnx     model.onnx, and the weights beside it in model.onnx.data: ONNX Runtime and whatever reads ONNX
    aoti     model.pt2 of compiled code (AOTInductor): the fastest, for this kind of CPU and this version of torch only
    triton   a model repository, NAME/config.pbtxt and NAME/1/model.onnx, which Triton loads as it is

    serve    for `funnelrank serve`: model.onnx with the encoder and the golden request beside it, sealed as an
             artefact; where the model reads flat alone, its tables are files beside the graph, looked up before it

Each comes with inputs.json: the graph's inputs, what varies in their shapes, and which feature is which column.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from funnelrank.artefact import SERVED
from funnelrank.batch import Batch
from funnelrank.durable import new_folder, write_failure
from funnelrank.errors import ConfigError, TrainingError, listing
from funnelrank.nn.linear import without_blocks
from funnelrank.onnx_runtime import session
from funnelrank.ranker import RankingModel
from funnelrank.schema import Schema
from funnelrank.scorer import Feed, Kind, Network, Scorer
from funnelrank.sealed import Content, refuse_strangers, to_json, write_sealed

Form = Literal["torch", "onnx", "aoti", "triton", "serve"]
CLOSE = 1e-5                     # what a form may differ from the model by
OPSET = 20
TIMED = 30                       # runs behind a p50
DATATYPES = {torch.int64: "INT64", torch.float32: "FP32"}
Run = Callable[[Mapping[str, Tensor]], list[np.ndarray]]


@dataclass
class Exported:
    """What was written, and how it compares."""

    folder: Path
    bytes: int
    load_seconds: float
    p50_ms: float                # of `rows` rows
    rows: int
    differences: dict[str, float] | None = None       # per output, from the model itself; None: not asked


def export(model: RankingModel, schema: Schema, name: str, to: Form, out: Path, *, tables: Kind = "fp32",
           rows: Batch | None = None, beside: Mapping[str, Content] | None = None,
           about: Mapping[str, Any] | None = None) -> Exported:
    """Write one form of a model into `out`, which must not be there yet, and time it on `rows`.

    With `rows`, it is also held against the model on them. To serve, `beside` holds what else the folder needs, and
    `about` what its manifest says; a folder of that kind is replaced. Raises ConfigError where a library is missing or
    the folder is in the way, and where the model has no such form.
    """
    _libraries(to)
    if to == "serve":
        refuse_strangers(out, SERVED)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} is there already; choose another folder, or remove it")
    scorer = Scorer(model, schema.served, tables).eval()
    if to == "serve":
        scorer = Network(scorer).eval() if scorer.flat_alone else scorer
    inputs = to_json(described(scorer, name, tables))
    if to == "serve":
        write_sealed(out, SERVED, {"model.onnx": lambda path: _write_onnx(scorer, path.parent, name),
                                   "inputs.json": inputs, **_tables(scorer), **(beside or {})}, about or {})
    else:
        try:
            with new_folder(out) as new:
                write = {"torch": _write_torch, "onnx": _write_onnx, "aoti": _write_aoti, "triton": _write_triton}[to]
                write(scorer, new, name)
                (new / "inputs.json").write_bytes(inputs)
        except OSError as error:
            said = write_failure(error, out)
            if said is None:
                raise
            raise TrainingError(f"{out}: {said}") from error
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    clock = time.perf_counter()
    run = opened(to, out, name)
    seconds = time.perf_counter() - clock
    fed = scorer.feed(rows) if rows is not None else sample(scorer.inputs, 64)
    times = []
    for _ in range(TIMED):
        clock = time.perf_counter()
        found = run(fed)
        times.append(time.perf_counter() - clock)
    return Exported(out, size, seconds, 1e3 * median(times), len(found[0]),
                    differences(model, schema, rows, found) if rows is not None else None)


def differences(model: RankingModel, schema: Schema, rows: Batch, found: Sequence[np.ndarray]) -> dict[str, float]:
    """Per output, the largest absolute difference from what the model serves of these rows."""
    with torch.inference_mode():
        said = model.eval().served(rows)
    apart = {}
    for o, values in zip(schema.served, found):
        wanted = model.funnel.answer(said, o).numpy()
        scale = np.maximum(1, np.abs(wanted))            # probabilities absolutely, larger values relatively
        apart[o.name] = float((np.abs(values - wanted) / scale).max(initial=0))
    return apart


def described(scorer: Scorer | Network, name: str, tables: Kind) -> dict[str, Any]:
    """What inputs.json says."""
    looked_up = {n: [asdict(p) for p in look.parts] for n, look in scorer.lookups.items()} if isinstance(
        scorer, Network) else {}
    return {"format": 1, "name": name, "tables": tables, **({"lookups": looked_up} if looked_up else {}),
            "inputs": [{"name": f.name, "datatype": DATATYPES[f.dtype], "shape": list(f.dims),
                        "features": list(f.reads)} for f in scorer.inputs],
            "outputs": [{"name": o.name, "datatype": "FP32", "shape": ["rows"]} for o in scorer.outputs]}


def _tables(scorer: Scorer | Network) -> dict[str, Content]:
    """The tables that a server looks in itself, as files that it can map."""
    return {f"tables/{name}.npy": partial(np.save, arr=table, allow_pickle=False)
            for name, table in scorer.tables[0].items()} if isinstance(scorer, Network) else {}


def sample(inputs: Sequence[Feed], rows: int, users: int = 1, length: int = 1) -> dict[str, Tensor]:
    """Inputs of that many rows, all zeros: null features, empty lists."""
    size = lambda d: d if isinstance(d, int) else {"users": users, "rows": rows}.get(d, length)
    return {f.name: torch.zeros([size(d) for d in f.dims], dtype=f.dtype) for f in inputs}


def opened(to: Form, folder: Path, name: str) -> Run:
    """A form that was written, ready to be run: named inputs -> the outputs in their order, [B] each."""
    if to == "torch":
        program = torch.export.load(folder / "model.pt2").module()
        return lambda fed: _numpy(program(*fed.values()))
    if to == "aoti":
        package = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
        return lambda fed: _numpy(package(*fed.values()))
    graph = session(folder / ("model.onnx" if to in ("onnx", "serve") else f"{name}/1/model.onnx"),
                    torch.get_num_threads())
    known = {i.name for i in graph.get_inputs()}
    return lambda fed: graph.run(None, {k: v.numpy() for k, v in fed.items() if k in known})


def _numpy(found: Sequence[Tensor]) -> list[np.ndarray]:
    return [t.detach().numpy() for t in found]


def program_of(scorer: Scorer | Network) -> torch.export.ExportedProgram:
    """The graph, every dimension that varies left open."""
    dims: dict[str, torch.export.Dim] = {}
    lengths = iter(range(5, 10**6, 2))                   # no two alike, none 0 or 1: those would be taken for constants
    sizes: dict[str, int] = {"users": 3, "rows": 4}
    for feed in scorer.inputs:
        for d in feed.dims:
            if isinstance(d, str):
                sizes.setdefault(d, next(lengths))
                dims.setdefault(d, torch.export.Dim.AUTO)
    example = [torch.zeros([sizes.get(d, d) for d in f.dims], dtype=f.dtype) for f in scorer.inputs]
    shapes = (tuple({i: dims[d] for i, d in enumerate(f.dims) if isinstance(d, str)} for f in scorer.inputs),)
    with torch.no_grad(), without_blocks():
        program = torch.export.export(scorer, tuple(example), dynamic_shapes=shapes, strict=False)
    with torch.no_grad():
        try:
            program.module()(*sample(scorer.inputs, 6, users=2, length=3).values())
        except (AssertionError, RuntimeError) as error:
            said = (str(error).splitlines() or [""])[0][:200]
            raise ConfigError("a part of the model makes a graph for one number of rows alone; it takes a size as a "
                              f"number of Python's, by len() or int(), where x.shape[0] is needed ({said})") from None
    unstack(program.graph_module.graph)
    exact_logs(program.graph_module.graph)
    return program


def exact_logs(graph: torch.fx.Graph) -> None:
    """log sigmoid(z) as -softplus(-z): ONNX would have the logarithm of a sigmoid, which for small probabilities has no
    digits left (of log p at z = -15 ONNX Runtime is off by 0.25).
    """
    ops = torch.ops.aten
    for node in list(graph.nodes):
        if node.target is ops.log_sigmoid.default:
            with graph.inserting_before(node):
                made = node.args[0]
                for op in (ops.neg.default, ops.softplus.default, ops.neg.default):
                    made = graph.call_function(op, (made,))
                    made.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    graph.owning_module.recompile()


def unstack(graph: torch.fx.Graph) -> None:
    """What is stacked and then taken apart again, as slots hand views to each other, is used as it was before: in
    eager code that is a view, and in a graph for other runtimes a copy.
    """
    ops, shape = torch.ops.aten, lambda node: node.meta["val"].shape

    def parts(node: torch.fx.Node, dim: int) -> Sequence[torch.fx.Node] | None:
        """What a node is a stack of along that dimension."""
        while node.target is ops.expand.default and shape(node) == shape(node.args[0]):
            node = node.args[0]
        if node.target is not ops.stack.default:
            return None
        rank, along = len(shape(node)), node.args[1] if len(node.args) > 1 else 0
        return node.args[0] if along % rank == dim % rank else None

    def use(instead: torch.fx.Node, of: torch.fx.Node) -> None:
        of.replace_all_uses_with(instead, lambda user: user.op != "output")      # outputs go by their nodes' names

    for node in list(graph.nodes):
        if node.target is ops.unbind.int and (found := parts(node.args[0], node.args[1] if len(node.args) > 1 else 0)):
            for taken in list(node.users):                   # getitem
                use(found[taken.args[1]], taken)
        elif node.target is ops.select.int and (found := parts(node.args[0], node.args[1])):
            use(found[node.args[2]], node)
    graph.eliminate_dead_code()
    graph.owning_module.recompile()


def _write_torch(scorer: Scorer, folder: Path, name: str) -> None:
    torch.export.save(program_of(scorer), folder / "model.pt2")


def _write_onnx(scorer: Scorer | Network, folder: Path, name: str) -> None:
    with _quiet():
        made = torch.onnx.export(program_of(scorer), (), dynamo=True, input_names=[f.name for f in scorer.inputs],
                                 output_names=[o.name for o in scorer.outputs], opset_version=OPSET, verbose=False)
        if isinstance(scorer, Network):
            _open_users(made.model)
        made.save(folder / "model.onnx", external_data=True)


def _open_users(graph: Any) -> None:
    """A graph for one user takes any number: what is added to a product [B, n] may be [1, n] or [B, n]. Shapes that say
    otherwise are forgotten; runtimes infer them.
    """
    import onnx_ir  # comes with onnxscript

    graph.graph.inputs[0].shape = onnx_ir.Shape(["users", graph.graph.inputs[0].shape[1]])
    outputs = set(graph.graph.outputs)
    for node in graph.graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


def _write_aoti(scorer: Scorer, folder: Path, name: str) -> None:
    try:
        torch._inductor.aoti_compile_and_package(program_of(scorer), package_path=str(folder / "model.pt2"))
    except torch._inductor.exc.InductorError as error:
        raise ConfigError(f"--to aoti: it cannot be compiled here ({str(error).splitlines()[0][:200]}); a C++ compiler "
                          "is needed; --to onnx is not") from None


def _write_triton(scorer: Scorer, folder: Path, name: str) -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    _write_onnx(scorer, version, name)
    (folder / name / "config.pbtxt").write_text(triton_config(scorer, name))


def triton_config(scorer: Scorer, name: str) -> str:
    """config.pbtxt. max_batch_size is 0: rows and users are dimensions of their own, and the client says how many."""
    def tensors(kind: str, each: Sequence[tuple[str, str, Sequence[str | int]]]) -> str:
        lines = []
        for tensor, datatype, dims in each:
            shape = ", ".join(str(d) if isinstance(d, int) else "-1" for d in dims)
            lines.append(f'  {{ name: "{tensor}", data_type: TYPE_{datatype}, dims: [ {shape} ] }}')
        return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"

    return (f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
            + tensors("input", [(f.name, DATATYPES[f.dtype], f.dims) for f in scorer.inputs])
            + tensors("output", [(o.name, "FP32", ("rows",)) for o in scorer.outputs])
            + "instance_group [ { kind: KIND_CPU } ]\n")


def _libraries(to: Form) -> None:
    """ConfigError where a library that this form needs is not installed."""
    needed = () if to in ("torch", "aoti") else ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ConfigError(f"--to {to}: needs {listing(missing)}, which this machine does not have; "
                          "pip install 'funnelrank[export]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own progress and of versions of each other."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {n: logging.getLogger(n).level for n in names}
    for n in names:
        logging.getLogger(n).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for n, level in before.items():
            logging.getLogger(n).setLevel(level)
