"""The rows of metrics.json: complete, never NaN, and equal to the metrics of the rows they speak of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from funnelrank.errors import ConfigError
from funnelrank.evaluate import metrics, table
from funnelrank.evaluate.measure import SIGNED, Scores, measure, reliability
from funnelrank.evaluate.table import COLUMNS, KINDS, check_name, direction, show, value, wide
from funnelrank.settings import Evaluate

EVALUATE = Evaluate()
NAMES = ["home", "search", "empty"]
ISSUE_NAMES = {"auc", "gauc", "gauc_unweighted", "gauc_frozen", "pr_auc", "logloss", "ne", "pcoc", "ece",
               "violation_rate", "rmse", "mae", "ece_noise", "spearman"}


def log_sigmoid(z):
    return -np.logaddexp(np.float32(0), -z)


def scores(n=4000, seed=0, **changed):
    """click > buy, a like beside them, money after a buy. Scenario codes 0..3 occur, 4 ('empty') does not."""
    rng = np.random.default_rng(seed)
    z = (rng.normal(0, 1, (n, 4)) + [-1, -2, -1.5, 0]).astype(np.float32)
    y = (rng.random((n, 4)) < 1 / (1 + np.exp(-z))).astype(np.float32)
    y[:, 3] = rng.gamma(2, 10, n)
    y[rng.random((n, 4)) < 0.2] = np.nan
    made = {"tasks": ["click", "buy", "like", "money"], "kinds": ["binary"] * 3 + ["regression"],
            "parents": [None, 0, None, 1], "log_p": log_sigmoid(z), "log_not_p": log_sigmoid(-z),
            "mean": np.exp(z) + 15, "labels": y, "scenario": rng.integers(0, 4, n, dtype=np.int32),
            "user": rng.integers(-1, 80, n)}
    return Scores(**made | changed)


def measured(s=None, **more):
    return measure("test", s or scores(), EVALUATE, NAMES, **more)


def find(rows, metric, task="click", scenario=None):
    found = [r for r in rows if (r["metric"], r["task"], r["scenario"]) == (metric, task, scenario)]
    assert len(found) == 1, f"{len(found)} rows of {task} {scenario} {metric}"
    return found[0]


# ---- form

def test_every_row_has_every_field_and_a_null_value_has_a_note():
    rows = measured(frozen=scores(seed=1))
    for r in rows:
        assert tuple(r) == COLUMNS
        assert r["note"] if r["value"] is None else isinstance(r["value"], float)
        assert isinstance(r["rows"], int) and (r["low"] is None) == (r["high"] is None)
        if r["low"] is None:
            assert r["metric"] == "ece_noise" or r["note"], r
        else:
            least = -1 if r["metric"] in SIGNED else 0
            assert least <= r["low"] <= r["value"] <= r["high"], r
        assert isinstance(r["positives"], int) or r["task"] == "money"
    assert {r["metric"] for r in rows} == ISSUE_NAMES
    assert json.loads(table.to_json(rows)) == rows


def test_every_task_meets_every_scenario_and_the_means_follow():
    rows = measured()
    places = list(dict.fromkeys((r["task"], r["scenario"]) for r in rows))
    where = [None, *NAMES, "(null)", "(unseen)"]
    assert places == [(t, s) for t in ["click", "buy", "like", "money", None] for s in where]


def test_null_and_unseen_stand_there_only_if_they_occur():
    s = scores(scenario=np.full(4000, 2, np.int32))
    assert {r["scenario"] for r in measure("test", s, EVALUATE, NAMES)} == {None, *NAMES}
    assert {r["scenario"] for r in measure("test", s, EVALUATE, None)} == {None}


# ---- numbers

@pytest.mark.parametrize("scenario, code", [(None, None), ("home", 2), ("(null)", 0), ("(unseen)", 1)])
@pytest.mark.parametrize("t, task", [(0, "click"), (1, "buy")])
def test_values_are_those_of_the_observed_rows_of_the_scenario(scenario, code, t, task):
    s = scores()
    rows = measured(s, frozen=scores(seed=1), truth={task: np.exp(s.log_p[:, t])})
    inside = np.ones(4000, bool) if code is None else s.scenario == code
    seen = inside & ~np.isnan(s.labels[:, t])
    y, lp, lq, user = s.labels[seen, t], s.log_p[seen, t], s.log_not_p[seen, t], s.user[seen]
    by_user = metrics.gauc(lp, y, user)
    expected = {"auc": metrics.auc(lp, y), "pr_auc": metrics.pr_auc(lp, y), "gauc": by_user.weighted,
                "gauc_unweighted": by_user.unweighted, "logloss": metrics.logloss(lp, lq, y),
                "gauc_frozen": metrics.gauc(scores(seed=1).log_p[seen, t], y, user).weighted,
                "ne": metrics.ne(lp, lq, y), "pcoc": metrics.pcoc(np.exp(lp), y),
                "ece": metrics.ece(np.exp(lp), y, EVALUATE.bins), "auc_oracle": metrics.auc(lp, y),
                "logloss_oracle": metrics.logloss(lp, lq, y), "pcoc_oracle": metrics.pcoc(np.exp(lp), y)}
    for metric, number in expected.items():
        row = find(rows, metric, task, scenario)
        assert row["value"] == pytest.approx(number, rel=1e-5), metric
        assert (row["rows"], row["positives"]) == (seen.sum(), y.sum())
    assert find(rows, "gauc", task, scenario)["valid_users"] == by_user.valid_users
    assert find(rows, "gauc", task, scenario)["users"] == by_user.users


def test_violations_are_counted_on_all_rows_and_only_below_a_binary_parent():
    s, rows = scores(), measured()
    row = find(rows, "violation_rate", "buy")
    assert row["value"] == np.mean(s.log_p[:, 1] > s.log_p[:, 0]) and row["rows"] == 4000
    assert {r["task"] for r in rows if r["metric"] == "violation_rate"} == {"buy", None}


def test_a_regression_has_errors_and_no_ranking():
    s, rows = scores(), measured()
    seen = ~np.isnan(s.labels[:, 3])
    assert {r["metric"] for r in rows if r["task"] == "money"} == {"rmse", "mae", "pcoc", "spearman"}
    assert find(rows, "rmse", "money")["value"] == pytest.approx(
        np.sqrt(np.mean((s.mean[seen, 3] - s.labels[seen, 3]) ** 2)), rel=1e-6)


@pytest.mark.parametrize("kind", ["count", "ziln"])
def test_an_amount_is_ranked_too_and_its_auc_has_an_interval(kind):
    s = scores()
    y = np.where(s.labels[:, 0] == 1, np.arange(len(s.labels)) % 7, 0.0)
    s = replace(s, kinds=["binary", "binary", "binary", kind], labels=np.column_stack([s.labels[:, :3], y]),
                mean=np.column_stack([s.mean[:, :3], s.mean[:, 3] + y]))
    rows = measured(s)
    assert {r["metric"] for r in rows if r["task"] == "money"} == set(KINDS[kind])
    found = find(rows, "auc_positive", "money")
    assert found["value"] == metrics.auc(s.mean[:, 3], y > 0) and found["low"] < found["value"] < found["high"]
    assert find(rows, "gini", "money")["value"] == metrics.gini(s.mean[:, 3], y)
    assert find(rows, "auc_positive", "money", "empty")["note"] == "no rows"


def test_means_are_over_binary_tasks_and_name_who_is_missing():
    s = scores()
    s.labels[:, 1] = np.nan
    rows = measured(s)
    mean = find(rows, "auc", None)
    both = [find(rows, "auc", t) for t in ("click", "like")]
    assert mean["value"] == pytest.approx(np.mean([r["value"] for r in both]))
    assert mean["note"] == "without 'buy'"
    assert mean["rows"] == sum(r["rows"] for r in both)
    assert not [r for r in rows if r["task"] is None and r["metric"] in ("rmse", "mae")]
    assert find(rows, "auc", None, "empty")["note"] == "no rows"


def test_order_of_rows_changes_nothing():
    s, order = scores(), np.random.default_rng(3).permutation(4000)
    columns = ("log_p", "log_not_p", "mean", "labels", "scenario", "user")
    moved = measured(scores(**{k: getattr(s, k)[order] for k in columns}))
    for a, b in zip(measured(s), moved, strict=True):
        assert a | dict.fromkeys(("value", "low", "high")) == b | dict.fromkeys(("value", "low", "high"))
        assert (a["value"] or 0) == pytest.approx(b["value"] or 0, rel=1e-6)
        if a["low"] is not None:        # users without a code are drawn one by one, in the rows' order
            assert a["high"] - a["low"] == pytest.approx(b["high"] - b["low"], rel=0.2)


def test_huge_user_codes_group_as_small_ones():
    s = scores()
    far = scores(user=np.where(s.user < 0, -1, s.user * 2**40 - 2**45))
    assert measured(far) == measured(s)


# ---- what cannot be said

def few(positives, n=100, **more):
    y = np.zeros((n, 1), np.float32)
    y[:positives] = 1
    z = np.random.default_rng(0).normal(size=(n, 1)).astype(np.float32)
    return Scores(**{"tasks": ["click"], "kinds": ["binary"], "parents": [None], "log_p": log_sigmoid(z),
                     "log_not_p": log_sigmoid(-z), "mean": z, "labels": y, "user": np.arange(n) % 2} | more)


@pytest.mark.parametrize("positives, ranking, ne, pcoc", [
    (9, "too few positives", None, None), (10, None, None, None), (91, "too few negatives", None, None),
    (0, "too few positives", "only one class", "labels sum to 0"), (100, "too few negatives", "only one class", None)])
def test_too_few_of_a_class_is_said_and_not_guessed(positives, ranking, ne, pcoc):
    rows = measure("test", few(positives), EVALUATE)
    for metric in ("auc", "gauc", "gauc_unweighted", "pr_auc"):
        note = find(rows, metric)["note"]
        assert note == ranking or (positives == 10 and note.endswith("users for an interval"))
    assert find(rows, "gauc")["users"] == 2
    scarce = "positives of too few users for an interval" if positives == 10 else f"{ranking} for an interval"
    assert find(rows, "ne")["note"] == (ne or scarce)
    assert find(rows, "pcoc")["note"] == (pcoc or scarce)
    assert find(rows, "logloss")["value"] > 0 and find(rows, "ece")["value"] > 0


def test_notes_for_labels_users_and_predictions_that_are_not_there():
    blank = np.full((100, 1), np.nan, np.float32)
    assert {r["note"] for r in measure("test", few(0, labels=blank), EVALUATE)} == {"no observed labels"}
    assert {r["note"] for r in measure("test", few(0, 0), EVALUATE)} == {"no rows"}
    assert find(measure("test", few(50, user=None), EVALUATE), "gauc")["note"] == "data.user is not set"
    one_each = find(measure("test", few(50, user=np.arange(100)), EVALUATE), "gauc")
    assert one_each["note"] == "no user has both classes" and one_each["users"] == 100
    broken = measure("test", few(50, log_p=blank, log_not_p=blank), EVALUATE)
    assert all(r["value"] is None and "NaN" in r["note"] or "not finite" in r["note"] for r in broken)


def test_a_true_probability_of_zero_that_happened_is_no_infinity():
    rows = measure("test", few(50), EVALUATE, truth={"click": np.zeros(100)})
    assert find(rows, "logloss_oracle")["note"] == "infinite: a label was given probability 0"
    assert find(rows, "auc_oracle")["value"] == 0.5


def test_a_scenario_code_without_a_name_is_our_fault():
    with pytest.raises(AssertionError, match="has no name"):
        measure("test", few(50, scenario=np.full(100, 9)), EVALUATE, NAMES)


# ---- reading the rows

def test_wide_is_one_line_of_tasks_and_means():
    rows = measured()
    line = wide(rows, "test")
    assert line["auc_click"] == find(rows, "auc")["value"]
    assert line["gauc_macro"] == find(rows, "gauc", None)["value"]
    assert line["valid_users_buy"] == find(rows, "gauc", "buy")["valid_users"]
    assert line["rmse_money"] == find(rows, "rmse", "money")["value"]
    assert wide(rows, "test", "home")["auc_like"] == find(rows, "auc", "like", "home")["value"]
    assert wide(rows, "valid") == {}


def test_value_finds_a_task_or_the_mean():
    rows = measured()
    assert value(rows, "test/buy/logloss") == find(rows, "logloss", "buy")["value"]
    assert value(rows, "test/auc") == find(rows, "auc", None)["value"]
    assert value(measure("valid", few(3), EVALUATE), "valid/click/auc") is None


@pytest.mark.parametrize("name, said", [
    ("test/bye/auc", r"no task 'bye' in 'test/bye/auc'; .*did you mean 'buy'"),
    ("test/buy/aux", r"no metric 'aux'.*did you mean 'auc'"),
    ("tset/auc", r"no split 'tset'"),
    ("test/buy", r"names a task but no metric; write 'test/buy/auc'"),
    ("auc", r"write 'valid/auc' for the mean"),
    ("test/buy/auc/x", r"is no metric's name"),
    ("test/rmse", r"no mean over tasks; name one task"),
    ("test/money/auc", r"'money' is a value and has no 'auc'; it has 'rmse', 'mae', 'pcoc'"),
    ("test/click/violation_rate", r"was not measured"),
])
def test_a_wrong_name_is_told_the_right_one(name, said):
    with pytest.raises(ConfigError, match=said):
        value(measured(), name)


def test_names_are_checked_before_anything_is_measured():
    kinds = {"click": "binary", "money": "regression"}
    assert check_name("valid/click/auc", kinds) == ("valid", "click", "auc")
    assert check_name("valid/logloss", kinds) == ("valid", None, "logloss")
    with pytest.raises(ConfigError, match="no split 'test'"):
        check_name("test/auc", kinds)
    with pytest.raises(ConfigError, match="no mean over tasks"):
        check_name("valid/auc", {"money": "regression"})


def test_direction_is_known_from_the_metric():
    assert direction("auc") == direction("valid/buy/gauc") == direction("valid/pr_auc") == 1
    assert direction("valid/logloss") == direction("rmse") == direction("ece") == -1
    with pytest.raises(ConfigError, match="best at 1"):
        direction("valid/pcoc")
    with pytest.raises(ConfigError, match="did you mean 'logloss'"):
        direction("valid/log_loss")


def test_show_has_a_line_per_task_and_scenario():
    columns, lines = show(measured(frozen=scores(seed=1)), "test")
    assert columns == ["task", "scenario", "auc", "gauc", "gauc_frozen", "logloss", "rmse", "mae", "pcoc", "rows",
                       "positives", "note"]
    assert len(lines) == 5 * 6 and all(len(line) == len(columns) for line in lines)
    assert all(isinstance(text, str) for line in lines for text in line)
    assert lines[0][:2] == ["click", "all"] and lines[-6][:2] == ["mean", "all"]
    assert lines[3][1:3] == ["empty", "-"] and lines[3][-1] == "no rows"


def test_show_says_which_metric_a_note_is_of_where_they_differ_or_the_value_stands():
    row = lambda metric, value, note: {c: None for c in COLUMNS} | {
        "split": "test", "task": "buy", "metric": metric, "value": value, "note": note, "rows": 9, "positives": 0}
    note = lambda *rows: show(rows, "test").rows[0][-1]
    assert note(row("auc", None, "few"), row("gauc", None, "few"), row("pcoc", 1.0, None)) == "few"
    assert note(row("auc", None, "few"), row("logloss", None, "few"), row("pcoc", None, "none")) == (
        "auc, logloss: few; pcoc: none")
    assert note(row("auc", 0.5, None), row("gauc", 0.5, "lists move it"), row("pcoc", 1.0, None)) == (
        "gauc: lists move it")


def test_show_leaves_out_columns_that_nothing_fills():
    columns, lines = show(measure("test", few(50, user=None), EVALUATE), "test")
    assert columns == ["task", "scenario", "auc", "logloss", "pcoc", "rows", "positives"]
    assert [line[0] for line in lines] == ["click", "mean"]
    assert lines[0][-2:] == ["100", "50"]


def test_reliability_is_plain_lists_of_binary_tasks():
    s = scores()
    s.labels[:, 1] = np.nan
    said = reliability(s, EVALUATE)
    assert list(said) == ["click", "like"]
    assert json.loads(json.dumps(said)) == said
    assert len(said["click"]["p"]) == EVALUATE.bins
    assert sum(said["click"]["count"]) == np.count_nonzero(~np.isnan(s.labels[:, 0]))
