"""What the price of variational dropout keeps and costs, among features of which some are known to say nothing.

    python benchmarks/selection.py LOGS/census_income --rows 30000

Census-Income gets idle features: copies of its own, shuffled over rows, which have the same values and say nothing. For
each price, over seeds: mean AUC on valid, the share that is kept of idle features and of the log's own, and the AUC
of a second training on the features that were kept by more than a half. The price is chosen on valid; with `--test` the
same is printed of test.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from funnelrank import api, load_config
from funnelrank.config import load, plain

PRICES = (None, 1e-4, 1e-3, 3e-3, 1e-2)
IDLE = "idle_"
IDLE_OF = ["age", "det_occ_code", "country_self", "tax_filer_stat", "weeks_worked", "det_hh_fam_stat",
           "stock_dividends", "major_ind_code"]
ROOT = Path(__file__).parent.parent


def with_idle(source: Path, folder: Path, columns: list[str], rows: int) -> None:
    for k, split in enumerate(("train", "valid", "test")):
        table, rng = pq.read_table(source / f"{split}.parquet"), np.random.default_rng(k)
        if split == "train" and rows and rows < len(table):
            table = table.take(pa.array(np.sort(rng.permutation(len(table))[:rows])))
        for name in columns:
            table = table.append_column(IDLE + name, table[name].take(pa.array(rng.permutation(len(table)))))
        pq.write_table(table, folder / f"{split}.parquet")


def trained(said: dict, price: float | None, seed: int, folder: Path, split: str) -> tuple[float, dict[str, float]]:
    """Mean AUC, and what is kept of each feature: of the number or id of the most, where it has several."""
    prepare = [{"name": "variational_dropout", "price": price}] if price else []
    model = said["model"] | {"prepare": prepare}
    train = said["train"] | {"threads": 1, "seed": seed, "out": str(folder / f"{price}_{seed}_{len(said['features'])}")}
    run = api.train(load({**said, "model": model, "train": train, "evaluate": {"frozen": False, "intervals": "none"}}))
    mean = next(r["value"] for r in run.rows if r["metric"] == "auc" and r["split"] == split
                and r["task"] in (None, "mean", "macro") and r["scenario"] in (None, "all"))
    kept: dict[str, float] = {}
    for r in run.rows:
        if r["metric"].startswith("kept:"):
            name = r["metric"].removeprefix("kept:")
            name = name if name in said["features"] else name.rpartition(".")[0] or name
            kept[name] = max(kept.get(name, 0.0), r["value"])
    return mean, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("census", type=Path, help="the folder of Census-Income's splits")
    parser.add_argument("--rows", type=int, default=0, help="of train; 0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--price", type=float, action="append", help="only these")
    parser.add_argument("--test", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    split = "test" if asked.test else "valid"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with_idle(asked.census, folder, IDLE_OF, asked.rows)
        said = plain(load_config(ROOT / "examples/census/aitm.yaml").settings)
        said["data"] |= {"dir": str(folder), "cache": str(folder / "cache"), "train": "train.parquet",
                         "valid": "valid.parquet", "test": "test.parquet"}
        own = list(said["features"])
        said["features"] |= {IDLE + n: {**said["features"][n], "column": IDLE + n} for n in IDLE_OF}
        print(f"{'price':>8} {'AUC on ' + split:>18} {'idle kept':>12} {'own kept':>12} {'own left':>9} "
              f"{'AUC of those alone':>20}", flush=True)
        for price in (None, *asked.price) if asked.price else PRICES:
            auc, idle_kept, own_kept, left, again = [], [], [], [], []
            for seed in range(asked.seeds):
                mean, kept = trained(said, price, seed, folder, split)
                auc.append(mean)
                if price is None:
                    continue
                idle_kept.append(np.mean([v for n, v in kept.items() if n.startswith(IDLE)]))
                own_kept.append(np.mean([v for n, v in kept.items() if not n.startswith(IDLE)]))
                worth = [n for n in own if n == "lists" or kept.get(n, 1.0) > 0.5]
                worth += [IDLE + n for n in IDLE_OF if kept.get(IDLE + n, 1.0) > 0.5]
                left.append(sum(n in own for n in worth) - ("lists" in own))
                fewer = {**said, "features": {n: said["features"][n] for n in worth}}
                again.append(trained(fewer, None, seed, folder, split)[0])
            of = lambda x, form="{:.4f} ± {:.4f}": form.format(np.mean(x), np.std(x, ddof=len(x) > 1)) if x else "-"
            print(f"{price or 'none':>8} {of(auc):>18} {of(idle_kept, '{:.2f} ± {:.2f}'):>12} "
                  f"{of(own_kept, '{:.2f} ± {:.2f}'):>12} {of(left, '{:.1f}'):>9} {of(again):>20}", flush=True)


if __name__ == "__main__":
    main()
