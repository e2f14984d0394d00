"""The calibrators as a module: nothing before they are fitted, order kept within scenarios, funnel kept, exportable."""

import numpy as np
import pytest
import torch
from made import batch, config, model

from funnelrank.calibration import KNOTS, Calibration
from funnelrank.evaluate import metrics
from funnelrank.evaluate.calibrate import LEAST, applied, described, fit_calibration, sampling_weights
from funnelrank.evaluate.intervals import ece_noise
from funnelrank.evaluate.measure import Scores
from funnelrank.funnel import Funnel
from funnelrank.schema import resolve

METHODS = tuple(KNOTS)
log_sigmoid = lambda z: -np.logaddexp(0, -z)


def said(z) -> Scores:
    """A funnel of two whose true log-odds are z, labels drawn from it; three scenarios."""
    rng = np.random.default_rng(7)
    n = len(z)
    p = 1 / (1 + np.exp(-z))
    click = rng.random(n) < p[:, 0]
    buy = click & (rng.random(n) < p[:, 1] / p[:, 0])
    labels = np.stack([click, buy], 1).astype(np.float32)
    return Scores(["click", "buy"], ["binary"] * 2, [None, 0], log_sigmoid(z).astype(np.float32),
                  log_sigmoid(-z).astype(np.float32), z, labels, rng.integers(2, 5, n), rng.integers(0, 900, n))


def funnel_z(n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    click = rng.normal(-0.5, 1, n)
    return np.stack([click, np.log(np.expm1(-log_sigmoid(click) - log_sigmoid(rng.normal(-1.5, 0.7, n)))) * -1], 1)


def off(scores, wrong) -> Scores:
    z = wrong(scores.log_p.astype(np.float64) - scores.log_not_p)
    return Scores(**{**scores.__dict__, "log_p": log_sigmoid(z).astype(np.float32),
                     "log_not_p": log_sigmoid(-z).astype(np.float32)})


def fitted(scores, method, **more):
    calibration = Calibration(scores.parents, scores.kinds, "joint", 5, method)
    return calibration, fit_calibration(calibration, scores, method, True, **more)


def ece(scores, t):
    return metrics.ece(np.exp(scores.log_p[:, t]), scores.labels[:, t])


@pytest.mark.parametrize("method", METHODS)
def test_before_it_is_fitted_it_says_what_was_said(method):
    funnel = Funnel([None, 0, 1], "conditional", ["binary", "binary", "regression"])
    before = funnel(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 3)
    after = Calibration([None, 0, 1], funnel.kinds, "conditional", 4, method)(before, torch.arange(64) % 4)
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [lambda z: 2 * z, lambda z: z + np.log(10), lambda z: 0.4 * z - 1])
def test_planted_faults_are_mended_on_other_rows(method, wrong):
    train, test = off(said(funnel_z()), wrong), off(said(funnel_z(seed=1)), wrong)
    calibration, found = fitted(train, method)
    after = applied(calibration, test)
    for t, task in enumerate(test.tasks):
        noise = ece_noise(np.exp(after.log_p[:, t]), after.labels[:, t], 20)
        assert ece(test, t) > 3 * noise and ece(after, t) < 2 * noise, task      # both rows' noise is in it
        assert found[task].after < found[task].before
        for s in (2, 3, 4):
            mine = test.scenario == s
            aucs = [metrics.auc(x.log_p[mine, t], x.labels[mine, t]) for x in (test, after)]
            assert aucs[0] == pytest.approx(aucs[1], abs=1e-4)
    assert (after.log_p[:, 1] <= after.log_p[:, 0])[test.log_p[:, 1] <= test.log_p[:, 0]].all()


@pytest.mark.parametrize("method", METHODS)
def test_order_within_a_scenario_is_strict(method):
    calibration, _ = fitted(off(said(funnel_z()), lambda z: 2 * z + 1), method)
    z = torch.linspace(-12, 12, 5001, dtype=torch.float64)
    columns = lambda x: x.unsqueeze(1).expand(-1, 2)
    for s in range(5):
        out = calibration.log_odds(columns(torch.nn.functional.logsigmoid(z)),
                                   columns(torch.nn.functional.logsigmoid(-z)), torch.full((5001,), s))
        assert (out[:, 0].diff() > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_right_stays_nearly_as_it_is(method):
    scores, test = said(funnel_z()), said(funnel_z(seed=1))
    calibration, found = fitted(scores, method)
    after = applied(calibration, test)
    for t in range(2):
        loss = [metrics.logloss(x.log_p[:, t], x.log_not_p[:, t], x.labels[:, t]) for x in (test, after)]
        assert loss[1] - loss[0] < 0.001
    assert described(found)["click"]["rows"] == 20_000


def test_scenarios_get_lines_of_their_own_only_where_they_differ():
    scores = said(funnel_z())
    calibration, found = fitted(scores, "platt")
    assert found["click"].scenarios == 3
    assert (calibration.shift[0].abs() < 0.05).all() and ((calibration.slope[0] - 1).abs() < 0.05).all()
    bias = np.array([0, 0, -1.0, 0.0, 1.0])[scores.scenario][:, None]
    calibration, _ = fitted(off(scores, lambda z: z + bias), "platt")
    low, _, high = (calibration.shift[0, s].item() for s in (2, 3, 4))
    assert low > 0.5 and high < -0.5
    assert calibration.slope[0, 0] == 1 and calibration.shift[0, 0] == 0          # null was not seen


def test_too_few_positives_leave_a_task_as_it_was():
    scores = said(funnel_z(2000))
    scores.labels[np.flatnonzero(scores.labels[:, 1])[LEAST - 1:], 1] = 0
    calibration, found = fitted(scores, "beta")
    assert "left as it was" in found["buy"].note and found["click"].note is None
    assert calibration.line[1].tolist() == [1, 1, 0]


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
def test_a_steps_probability_never_rises_above_the_one_before(reading):
    calibration = Calibration([None, 0], ["binary"] * 2, reading, 3, "platt")
    calibration.line[0, 2] = -4.0
    before = Funnel([None, 0], reading)(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
    after = calibration(before, torch.zeros(500, dtype=torch.int32))
    assert (after.log_p[:, 1] <= after.log_p[:, 0]).all() and (after.given <= 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_maps_that_disagree_are_made_one(method):
    """Negatives of the first step kept at 5 %: its own odds are off by one factor, those of the next by each row's."""
    def sampled(scores):
        p = np.exp(scores.log_p.astype(np.float64))
        click = p[:, 0] / (p[:, 0] + (1 - p[:, 0]) * 0.05)
        both = np.log(np.stack([click, click * p[:, 1] / p[:, 0]], 1))
        return Scores(**{**scores.__dict__, "log_p": both.astype(np.float32),
                         "log_not_p": np.log1p(-np.exp(both)).astype(np.float32)})

    rng = np.random.default_rng(5)
    z = lambda n: np.stack([click := rng.normal(-1, 1.5, n), -np.log(np.expm1(
        -log_sigmoid(click) - log_sigmoid(rng.normal(2, 2, n))))], 1)
    truth = said(z(20_000))
    train, test = sampled(said(z(20_000))), sampled(truth)
    calibration, found = fitted(train, method)
    assert calibration.given.tolist() == [False, True] and "data.negatives_kept" in found["buy"].note
    after = applied(calibration, test)
    assert (after.log_p[:, 1] <= after.log_p[:, 0]).all()
    auc = lambda x: metrics.auc(x.log_p[:, 1], x.labels[:, 1])
    assert auc(test) + 0.003 < auc(after) == pytest.approx(auc(truth), abs=1e-3)      # the order of the truth
    for t in range(2):
        assert ece(after, t) < 2 * ece_noise(np.exp(after.log_p[:, t]), after.labels[:, t], 20)
    train.labels[np.flatnonzero(train.labels[:, 1])[::10], 0] = 0          # one buy in ten without a click
    assert not fitted(train, method)[0].given.any()


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
def test_a_value_after_a_step_follows_its_probability(reading):
    calibration = Calibration([None, 0], ["binary", "regression"], reading, 3, "platt")
    calibration.line[0, 2] = 1.0
    before = Funnel([None, 0], reading, ["binary", "regression"])(torch.ones(4, 2))
    after = calibration(before, torch.zeros(4, dtype=torch.int32))
    torch.testing.assert_close(after.mean[:, 1], after.given[:, 1] * after.mean[:, 0])
    assert (after.given[:, 1] == before.given[:, 1]).all() and (after.mean[:, 1] > before.mean[:, 1]).all()


def test_it_is_part_of_an_exported_graph():
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.funnel = Funnel([None, 0])
            self.calibration = fitted(off(said(funnel_z()), lambda z: 2 * z), "isotonic")[0]

        def forward(self, logits, scenario):
            return self.calibration(self.funnel(logits), scenario)

    whole, rows = Whole(), torch.export.Dim("rows", min=2)
    logits, scenario = torch.randn(8, 2), torch.arange(8, dtype=torch.int32) % 5
    program = torch.export.export(whole, (logits, scenario), dynamic_shapes=({0: rows}, {0: rows}))
    more = torch.randn(33, 2), torch.arange(33, dtype=torch.int32) % 5
    for a, b in zip(program.module()(*more), whole(*more)):
        torch.testing.assert_close(a, b)


def test_sampled_rows_count_for_those_they_stand_for():
    whole = said(funnel_z(40_000))
    keep = (np.random.default_rng(3).random(40_000) < 0.1) | (whole.labels[:, 0] == 1)
    cut = Scores(**{**whole.__dict__, **{k: getattr(whole, k)[keep] for k in (
        "log_p", "log_not_p", "mean", "labels", "scenario", "user")}})
    schema = resolve(config(data={"negatives_kept": {"task": "click", "rate": 0.1, "splits": ["train", "valid"]},
                                  "contradictions": "keep", "scenario": "tab", "user": "user"}))
    weight = sampling_weights(schema, "valid", cut.labels)
    assert sampling_weights(schema, "test", cut.labels) is None
    assert weight.sum() == pytest.approx(40_000, rel=0.02)
    after = applied(fitted(off(cut, lambda z: z / 2), "platt", weight=weight)[0], off(whole, lambda z: z / 2))
    assert ece(after, 0) < 0.02 < ece(off(whole, lambda z: z / 2), 0)


def test_served_undoes_sampling_then_calibrates_and_sampled_splits_are_as_sampled():
    sampled = {"negatives_kept": {"task": "click", "rate": 0.1}, "contradictions": "keep", "scenario": "tab",
               "user": "user"}
    plain, both = model(config(data=sampled)), model(config(data=sampled, calibrate={"method": "platt"}))
    rows = batch()
    with torch.no_grad():
        for corrected in (True, False):
            for a, b in zip(plain.eval().served(rows, corrected), both.eval().served(rows, corrected)):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        both.calibration.line[:, 2] = 0.5
        served, as_sampled = both.served(rows), both.served(rows, corrected=False)
    z = lambda s: (s.log_p - s.log_not_p)[:, 0]
    torch.testing.assert_close(z(as_sampled), z(served) + np.float32(np.log(10)), rtol=1e-4, atol=1e-4)
    assert "calibration.line" in both.state_dict() and not any("calibration" in k for k in plain.state_dict())
