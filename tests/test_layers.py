"""Imports point down only; the rules of docs/architecture.md about who may import, print and catch what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "funnelrank"
STRANGERS = ["data", "embedding", "models", "loss", "evaluate.metrics"]      # of one layer, and do not meet
LAYERS = [
    ["errors", "stopping", "expression"],
    ["settings", "schema", "document", "validate", "blocks", "shapes", "sizes", "fill", "together", "check",
     "config", "own_parts",
     "durable", "sealed"],
    ["batch", "inputs", "kernels", "lookups", "tensors", "ranks", "onnx_runtime"],
    ["nn", "funnel", "values", "calibration", "debias"],
    STRANGERS,
    ["ranker"],
    ["scorer"],
    ["train", "evaluate", "artefact", "export"],
    ["start", "continued"],
    ["flow"],
    ["describe"],
    ["network"],
    ["picture"],
    ["api", "again", "runs", "transfer", "doctor", "explain", "tune", "simulate", "imports", "schema_file",
     "reference"],
    ["console"],
    ["serve"],
    ["cli"],
    ["", "__main__"],
]
NO_TORCH = ["errors", "settings", "schema", "document", "validate", "blocks", "shapes", "sizes", "fill", "together",
            "check", "config", "describe", "cli", "simulate", "data.encode", "data.golden", "artefact", "batch",
            "own_parts", "imports"]
MAY_SAY = {"print": ["console", "__main__"], "pyarrow": ["data", "simulate", "flow", "api", "doctor", "serve"],
           "torchrec": ["embedding"], "except Exception": ["cli", "serve", "train.track"]}
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): p
         for p in sorted(ROOT.rglob("*.py"))}


def layer(module: str) -> int:
    """The deepest entry that names the module or a package of it."""
    names = [module.rsplit(".", k)[0] for k in range(module.count(".") + 1)]
    for name in names:
        for height, modules in enumerate(LAYERS):
            if name in modules:
                return height
    raise AssertionError(f"{module} stands in no layer; add it to LAYERS")


def imports(tree: ast.AST) -> list[str]:
    """Every imported module; `from a import b` also counts as a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def parse(module: str) -> ast.Module:
    """A module without what stands under `if TYPE_CHECKING:`, which never runs."""
    tree = ast.parse(FILES[module].read_text())
    tree.body = [node for node in tree.body
                 if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
    return tree


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module):
    for name in imports(parse(module)):
        inner = name.removeprefix("funnelrank.")
        if name.startswith("funnelrank.") and inner in FILES:
            assert layer(inner) <= layer(module), f"{module} imports {inner}, which stands above it"
            if layer(inner) == layer(module) == LAYERS.index(STRANGERS):
                assert inner.split(".")[0] == module.split(".")[0], f"{module} and {inner} do not know each other"


@pytest.mark.parametrize("module", FILES)
def test_only_some_modules_print_import_these_or_catch_everything(module):
    tree = parse(module)
    said = {"pyarrow", "torchrec"} & {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            said.add("print")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}, line {node.lineno}: a bare except"
            passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if ast.unparse(node.type) in ("Exception", "BaseException") and not passes_on:
                said.add("except Exception")
    for what in said:
        mine = [may for may in MAY_SAY[what] if f"{module}.".startswith(f"{may}.")]
        assert mine, f"{module}: {what} belongs to {MAY_SAY[what]} alone"
    used = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not used & {"eval", "exec", "__import__"}, f"{module} runs code from texts"
    assert not {"pandas", "polars", "pickle"} & {name.split(".")[0] for name in imports(tree)}, module


def test_checking_and_helping_import_no_torch():
    code = f"""
import importlib, sys
for name in {NO_TORCH!r}:
    importlib.import_module('funnelrank.' + name)
    assert 'torch' not in sys.modules, name + ' imports torch'
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("tokens", [["--help"], ["train", "--help"]])
def test_help_imports_neither_torch_nor_pyarrow(tokens):
    code = f"import sys; from funnelrank.cli import main; main({tokens!r}); print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    modules = said.splitlines()[-1]
    assert "'funnelrank.cli'" in modules
    for name in ("torch", "pyarrow", "numpy", "pydantic"):
        assert f"'{name}'" not in modules, name


def test_the_core_imports_no_torchrec():
    code = """
import sys
import funnelrank.api, funnelrank.embedding.sharded
assert not {'torchrec', 'fbgemm_gpu', 'torch.distributed.checkpoint'} & set(sys.modules), 'one process needs none'
"""
    subprocess.run([sys.executable, "-c", code], check=True)
