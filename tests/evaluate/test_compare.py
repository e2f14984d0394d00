"""Paired comparisons: what is kept of a run, what is refused, and what is and is not said to be shown."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from funnelrank.errors import ArtefactError, ConfigError, DataError
from funnelrank.evaluate import seeds
from funnelrank.evaluate.compare import Contestant, compare, holm, markdown, shown, t_p_value, t_quantile, words
from funnelrank.evaluate.kept import keep_scores, open_scores
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.settings import Evaluate

EVALUATE = Evaluate(resamples=300)
log_sigmoid = lambda z: -np.logaddexp(np.float32(0), -z)


def said(noise=0.0, seed=0, n=4000, **changed) -> Scores:
    """One log, and a model that reads it with more or less noise."""
    world = np.random.default_rng(1)
    truth = world.normal(-1, 1.2, (n, 2)).astype(np.float32)
    labels = (world.random((n, 2)) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    labels[world.random((n, 2)) < 0.1] = np.nan
    z = truth + np.float32(noise) * np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
    made = {"tasks": ["click", "buy"], "kinds": ["binary"] * 2, "parents": [None, 0], "log_p": log_sigmoid(z),
            "log_not_p": log_sigmoid(-z), "mean": z, "labels": labels,
            "scenario": world.integers(1, 4, n, dtype=np.int32), "user": world.integers(-1, 300, n)}
    return Scores(**made | changed)


def kept(tmp_path, scores, name="a", frozen=None, evaluate=EVALUATE, split="test", scenarios=("home", "search")):
    keep_scores(tmp_path / name / "scores", split, scores, frozen, scenarios, evaluate, {"name": name})
    return open_scores(tmp_path / name / "scores")


def contest(tmp_path, *some, **more):
    return compare([Contestant(chr(97 + i), [kept(tmp_path, s, f"{i}-{k}") for k, s in enumerate(seeds_)])
                    for i, seeds_ in enumerate(some)], **more)


def row(found, task, metric="auc", scenario=None, run="b"):
    wanted = run, task, metric, scenario
    (one,) = [r for r in found.rows if (r["run"], r["task"], r["metric"], r["scenario"]) == wanted]
    return one


def test_what_is_kept_is_what_was_said(tmp_path):
    scores, frozen = said(), said(0.5)
    back = kept(tmp_path, scores, frozen=frozen)
    for name in ("log_p", "log_not_p", "labels", "scenario", "user"):
        np.testing.assert_array_equal(getattr(back.scores, name), getattr(scores, name))
    np.testing.assert_array_equal(back.frozen.log_p, frozen.log_p)
    assert (back.name, back.split, back.scenarios, back.evaluate) == ("a", "test", ["home", "search"], EVALUATE)
    path = tmp_path / "a" / "scores" / "rows.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtefactError, match="changed after it was written"):
        open_scores(tmp_path / "a" / "scores")


def test_of_many_rows_whole_users_are_kept_and_the_same_by_every_run(tmp_path):
    few = EVALUATE.model_copy(update={"keep_scores": 1000})
    a, b = (kept(tmp_path, s, name, evaluate=few) for s, name in ((said(), "a"), (said(1.0), "b")))
    assert 800 < len(a.scores.labels) <= 1000 and a.rows_of == b.rows_of and a.rows_of["of"] == 4000
    user = said().user
    assert all(np.isin(user, u).sum() == np.isin(a.scores.user, u).sum() for u in np.unique(a.scores.user))
    keep_scores(tmp_path / "c", "test", said(), None, (), EVALUATE.model_copy(update={"keep_scores": 0}), {})
    assert not (tmp_path / "c").exists()


def test_a_better_model_is_shown_to_be_better(tmp_path):
    found = contest(tmp_path, [said(1.0)], [said(0.0)])
    auc, loss = row(found, "click"), row(found, "click", "logloss")
    assert auc["better"] == loss["better"] == "b" and auc["difference"] > 0 > loss["difference"]
    assert auc["low"] > 0 and auc["p"] <= auc["p_corrected"] < 0.05
    assert auc["difference"] == pytest.approx(auc["value"] - auc["base_value"])
    assert row(found, None)["better"] == "b" and row(found, "buy", "auc", "home")["rows"] > 0
    sentence = next(s for s in words(found) if s.startswith("Shown: b is better than a in auc of click, by"))
    ends = f"{auc['difference']:.4f} (95 %: {auc['low']:.4f} to {auc['high']:.4f};"
    assert ends in sentence
    back = contest(tmp_path / "back", [said(0.0)], [said(1.0)])
    assert any(s.startswith("Shown: a is better than b in auc of click") and ends in s for s in words(back))
    assert row(back, "click")["better"] == "a" and row(back, "click")["difference"] == -auc["difference"]
    assert row(back, "click")["error"] == pytest.approx(auc["error"])


def test_a_run_and_itself_show_nothing(tmp_path):
    found = contest(tmp_path, [said(0.5)], [said(0.5)])
    assert not any(r["better"] for r in found.rows) and row(found, "click")["p_corrected"] == 1
    assert all(s.startswith("Not shown: any difference") for s in words(found))
    assert "no proof that they are equal" in words(found)[0]


def test_pairing_sees_what_two_intervals_cannot(tmp_path):
    found = contest(tmp_path, [said(0.6)], [said(0.45)])
    auc = row(found, "click")
    assert auc["better"] == "b"
    whole = Evaluate(resamples=300)
    alone = [next(r for r in measure("test", said(x), whole) if r["metric"] == "auc") for x in (0.6, 0.45)]
    assert alone[0]["high"] > alone[1]["low"]          # their own intervals overlap


def test_seeds_are_averaged_and_their_spread_is_part_of_the_error(tmp_path):
    single = contest(tmp_path / "1", [said(0.6, 1)], [said(0.55, 2)], by_scenario=False)
    several = contest(tmp_path / "3", [said(0.6, s) for s in (1, 3, 5)], [said(0.55, s) for s in (2, 4, 6)],
                      by_scenario=False)
    auc = row(several, "click")
    assert auc["seeds"] == [3, 3] and row(single, "click")["seeds"] == [1, 1]
    assert (auc["high"] - auc["low"]) / 2 > 1.96 * auc["error"]          # Student's t
    assert any("One training each of 'a' and 'b'" in n for n in single.notes)
    assert not any("One training" in n for n in several.notes)


def test_two_equal_models_are_told_apart_about_as_often_as_stated(tmp_path):
    p = [row(compare([Contestant("a", [kept(tmp_path, said(0.7, 2 * i, 600), f"a{i}")]),
                      Contestant("b", [kept(tmp_path, said(0.7, 2 * i + 1, 600), f"b{i}")])], ("auc",), False),
             "click")["p"] for i in range(60)]
    assert sum(x < 0.05 for x in p) <= 8 and np.mean(p) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("change, words_", [
    ({"labels": said(n=4000).labels[::-1]}, "label 'click' differs"),
    ({"user": said().user[::-1]}, "other users"),
    ({"scenario": said().scenario[::-1]}, "other scenarios"),
    ({"tasks": ["x", "y"]}, "shares no task")])
def test_other_rows_are_refused_in_a_sentence(tmp_path, change, words_):
    with pytest.raises(DataError, match=words_):
        contest(tmp_path, [said()], [replace(said(), **{k: np.ascontiguousarray(v) if k != "tasks" else v
                                                        for k, v in change.items()})])


def test_another_number_of_rows_or_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="b: 3,000 of 3,000 test rows were kept, of a 4,000 of 4,000"):
        contest(tmp_path, [said()], [said(n=3000)])
    with pytest.raises(DataError, match="b: was measured on valid, a on test"):
        compare([Contestant("a", [kept(tmp_path, said(), "a")]),
                 Contestant("b", [kept(tmp_path, said(), "b", split="valid")])])
    with pytest.raises(ConfigError, match="one run has nothing"):
        contest(tmp_path, [said()])
    with pytest.raises(ConfigError, match="no metric 'acu'.*did you mean 'auc'"):
        contest(tmp_path, [said()], [said()], metrics=("acu",))


def test_tasks_that_not_all_have_are_named(tmp_path):
    one = said()
    only = Scores(["buy"], ["binary"], [None], one.log_p[:, 1:], one.log_not_p[:, 1:], one.mean[:, 1:],
                  one.labels[:, 1:], one.scenario, one.user)
    found = contest(tmp_path, [one], [only], by_scenario=False)
    assert {r["task"] for r in found.rows} == {"buy", None}
    assert any("not every run has them: 'click'" in n for n in found.notes)


def test_the_page_and_the_json_say_the_same(tmp_path):
    found = contest(tmp_path, [said(1.0)], [said()], [said(1.0, 7)])
    page = markdown(found)
    assert all(s in page for s in (*words(found), *found.notes))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"] == found.rows
    columns, lines = shown(found)
    assert all(len(line) == len(columns) and all(isinstance(c, str) for c in line) for line in lines)
    assert {r["run"] for r in found.rows} == {"b", "c"}


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("freedom", [2, 3, 4, 8, 30, 1000])
def test_students_t(freedom):
    exact = stats.t.ppf(0.975, freedom)
    assert exact - 1e-6 <= t_quantile(freedom) <= 1.05 * exact
    assert t_p_value(t_quantile(freedom), freedom) == pytest.approx(0.05)      # interval and p value say the same
    for t in (0.5, 2.0, 3.5):
        assert t_p_value(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=0.05 if freedom > 2 else 0.2)
    assert t_p_value(1.96, float("inf")) == pytest.approx(0.05, abs=1e-4)
    assert t_quantile(float("inf")) == pytest.approx(1.96, abs=1e-4)


def metrics_rows(value, half=0.01):
    return [{"split": "test", "task": t, "scenario": None, "metric": "auc", "value": value, "low": value - half,
             "high": value + half, "rows": 9, "positives": 4, "note": None} for t in ("click", None)]


def test_seeds_have_a_mean_an_sd_and_a_range():
    rows = seeds.summary([metrics_rows(v) for v in (0.70, 0.72, 0.74)])
    assert rows[0]["mean"] == pytest.approx(0.72) and rows[0]["sd"] == pytest.approx(0.02)
    assert (rows[0]["least"], rows[0]["most"], rows[0]["seeds"]) == (0.70, 0.74, 3)
    assert rows[0]["half"] == pytest.approx(0.01)
    assert "| click | 0.7200 sd 0.0200 [0.7000 0.7400] |" in seeds.markdown("demo", rows, [0, 1, 2])


def test_a_leaderboard_has_the_best_first():
    runs = {"a": [metrics_rows(0.7)], "b": [metrics_rows(0.7), metrics_rows(0.8)], "c": [[]]}
    assert seeds.leaderboard(runs, "test/auc").rows == [
        ["1", "b", "0.7500", "+-0.0100", "0.0707", "2"], ["2", "a", "0.7000", "+-0.0100", "-", "1"],
        ["3", "c", "-", "-", "-", "-"]]
    with pytest.raises(ConfigError, match="none of .* has 'test/buy/auc'"):
        seeds.leaderboard(runs, "test/buy/auc")
    with pytest.raises(ConfigError, match="did you mean 'test/click/auc'"):
        seeds.leaderboard(runs, "test/clik/auc")
    with pytest.raises(ConfigError, match="is no metric's name"):
        seeds.leaderboard(runs, "auc")


def test_the_order_of_amounts_and_classes_is_compared_too(tmp_path):
    """A better order of amounts, and better classes, are shown; a model against itself differs by nothing."""
    world = np.random.default_rng(2)
    amount = np.maximum(world.normal(size=(2000, 1)), 0).astype(np.float32)
    kind = world.integers(0, 3, 2000)

    def told(noise):
        g = np.random.default_rng(3)
        z = (4 * np.eye(3)[kind] + noise * g.normal(size=(2000, 3))).astype(np.float32)
        log_p = z - np.logaddexp.reduce(z, 1)[:, None]
        mean = np.exp(amount + noise * g.normal(size=(2000, 1)).astype(np.float32))
        return said(n=2000, tasks=["spend", "device"], kinds=["ziln", "multiclass"], parents=[None, None],
                    mean=np.hstack([mean, mean]), labels=np.column_stack([amount[:, 0], kind]).astype(np.float32),
                    classes={"device": log_p})

    places = [("spend", "spearman"), ("spend", "gini"), ("device", "accuracy"), ("device", "auc_ovr")]
    found = contest(tmp_path, [told(3.0)], [told(1.0)], metrics=tuple(m for _, m in places))
    for task, metric in places:
        one = row(found, task, metric)
        assert one["better"] == "b" and 0 < one["low"] < one["difference"] < one["high"], one
    same = contest(tmp_path / "same", [told(1.0)], [told(1.0)], metrics=("spearman", "accuracy"))
    assert {(r["difference"], r["error"]) for r in same.rows if r["scenario"] is None} == {(0.0, 0.0)}
    by_default = contest(tmp_path / "same", [told(1.0)], [told(1.0)], by_scenario=False)
    assert {(r["task"], r["metric"]) for r in by_default.rows} == {
        ("spend", "gini"), ("device", "accuracy"), ("device", "logloss")}


def test_gauc_is_compared_by_default_only_where_there_are_users(tmp_path):
    asked = lambda **more: {r["metric"] for r in contest(tmp_path, *[[said(x, **more)] for x in (1.0, 0.0)]).rows}
    assert asked() == {"auc", "gauc", "logloss"} and asked(user=None) == {"auc", "logloss"}
