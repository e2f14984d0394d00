"""Metrics of scikit-learn, torch-rechub and FuxiCTR on the scores that funnelrank is given, and LightGBM for scale."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from gate import Gate  # noqa: E402

gate = Gate()                    # first of all: some of the packages print while they are imported

from log import read  # noqa: E402
from scores import scores  # noqa: E402


def auc_sklearn(said: dict):
    from sklearn.metrics import roc_auc_score
    score, label, _ = scores(said["rows"])
    return lambda: roc_auc_score(label, score)


def gauc_rechub(said: dict):
    from torch_rechub.basic.metric import gauc_score
    score, label, user = scores(said["rows"])
    return lambda: gauc_score(label, score, user)


def gauc_fuxictr(said: dict):
    from fuxictr.metrics import evaluate_metrics
    score, label, user = scores(said["rows"])
    return lambda: evaluate_metrics(label, score, ["gAUC"], user)


def trees(said: dict):
    """LightGBM's defaults, 100 trees on ids, numbers and lengths of histories; a pass is a whole training."""
    import lightgbm
    meta, x, labels = read(said["log"], parts=1)
    columns = [x[f] for f in (*meta["fields"], *meta["numbers"])] + [(x[h] > 0).sum(1) for h in meta["lists"]]
    table, label = np.stack(columns, 1).astype(np.float32)[:said["rows"]], labels["click"][:said["rows"]]
    settings = {"objective": "binary", "num_threads": 1, "verbosity": -1}
    return lambda: lightgbm.train(settings, lightgbm.Dataset(table, label), 100)


def main() -> None:
    said = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")                  # one a user, at torch-rechub's GAUC
    work = {"auc-sklearn": auc_sklearn, "gauc-rechub": gauc_rechub, "gauc-fuxictr": gauc_fuxictr,
            "trees": trees}[said["work"]](said)

    def one() -> int:
        work()
        return said["rows"]
    gate.passes(one)


if __name__ == "__main__":
    main()
