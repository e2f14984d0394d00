"""Field-wise calibration error against its definition."""

import numpy as np
import pytest

from funnelrank.evaluate.fields import field_rows, show_fields
from funnelrank.evaluate.measure import Scores


def said(n=6000):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.6, (n, 1))
    code = rng.integers(0, 4, n)
    y = (rng.random((n, 1)) < p * np.where(code == 2, 1.3, 1.0)[:, None]).astype(np.float32)
    y[rng.random(n) < 0.1] = np.nan
    log_p = np.log(p).astype(np.float32)
    return Scores(["click", "money"], ["binary", "count"], [None, None], np.repeat(log_p, 2, 1), np.repeat(log_p, 2, 1),
                  np.repeat(p, 2, 1), np.repeat(y, 2, 1)), code


def test_field_ece_is_its_definition_and_names_the_worst_value():
    scores, code = said()
    (row,) = field_rows("test", scores, "country", code, ["nl", "de", "fr", "be"])
    y, p = scores.labels[:, 0], np.exp(scores.log_p[:, 0])
    seen = ~np.isnan(y)
    gaps = [abs((p - y)[seen & (code == v)].sum()) for v in range(4)]
    assert row["value"] == pytest.approx(sum(gaps) / seen.sum(), rel=1e-4)
    assert (row["rows"], row["positives"], row["metric"]) == (seen.sum(), int(y[seen].sum()), "field_ece:country")
    worst = row["values"][0]
    mine = seen & (code == 2)
    assert worst["name"] == "fr" and worst["rows"] == mine.sum() and worst["z"] < -4
    assert (worst["p"], worst["y"]) == pytest.approx((p[mine].mean(), y[mine].mean()), rel=1e-5)
    assert "fr" in [line[2] for line in show_fields([row]).rows]


def test_its_noise_is_what_chance_leaves():
    scores, code = said()
    rng, p, found = np.random.default_rng(1), np.exp(scores.log_p[:, 0]), []
    for _ in range(200):
        scores.labels[:, 0] = rng.random(len(p)) < p
        found.append(field_rows("test", scores, "c", code, list("abcd"))[0])
    assert found[0]["noise"] == pytest.approx(np.mean([r["value"] for r in found]), rel=0.15)
    assert 0.01 < np.mean([abs(v["z"]) > 1.96 for r in found for v in r["values"]]) < 0.1


def test_labels_that_were_not_observed_have_a_note():
    scores, code = said(50)
    scores.labels[:, 0] = np.nan
    (row,) = field_rows("test", scores, "c", code, list("abcd"))
    assert row["value"] is None and row["note"] == "no observed labels"
    assert show_fields([row]).rows[0][6] == "no observed labels"
