"""Every model of the registry, exported: python benchmarks/exports.py [--to onnx] [MODEL ...]

Prints, for each, the largest difference of any output from the model itself, over batches of 1, 2, 11 and 40 rows with
other list lengths each, and over rows that share a user; and the p50 of 11 rows. About 20 CPU seconds a model for ONNX.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from made import batch, config, model  # noqa: E402

from funnelrank.export import CLOSE, differences, export, opened  # noqa: E402
from funnelrank.models import MODELS  # noqa: E402
from funnelrank.schema import resolve  # noqa: E402
from funnelrank.scorer import Scorer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", default="onnx", choices=["onnx", "torch", "aoti", "triton"])
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    for name in asked.models or MODELS:
        settings = config({"name": name})
        m, schema = model(settings).eval(), resolve(settings)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            done = export(m, schema, "m", asked.to, out, rows=batch(11))
            run, scorer = opened(asked.to, out, "m"), Scorer(m, schema.served).eval()
            apart = [max(done.differences.values())]
            for rows in (1, 2, 40):
                each = batch(rows, seed=rows)
                apart.append(max(differences(m, schema, each, run(scorer.feed(each))).values()))
            fed = scorer.feed(batch(5, seed=3), batch(1, seed=2), torch.zeros(5, dtype=torch.int64))
            with torch.no_grad():
                wanted = scorer(*fed.values())
            apart.append(max(float((a - torch.from_numpy(b)).abs().max()) for a, b in zip(wanted, run(fed))))
        worst = max(worst, *apart)
        print(f"{name:<14} {max(apart):.1e}  p50 {done.p50_ms:.2f} ms  loads in {done.load_seconds:.2f} s", flush=True)
    print(f"largest difference {worst:.1e}")
    sys.exit(worst > CLOSE)


if __name__ == "__main__":
    main()
