"""Faults planted by somebody who had not read the detectors: he knew what a doctor is for, and the format of a log.

Each was missed, or told misleadingly, when he first tried it, but for the last few. `where` is what has to be named.
Controls are logs without a fault, which a doctor has to leave alone; some of them were not.
"""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch

from funnelrank import cli, doctor
from funnelrank import config as configs
from funnelrank.doctor.patient import Patient
from funnelrank.simulate import simulate

SPLITS = ("train", "valid", "test")
CONFIG = {
    "data": {"scenario": "scenario", "user": "user_id", "time": "time_ms"},
    "features": {
        "item_id": "id", "scenario": "id", "device": "id", "hour": {"num_buckets": 24}, "price": "number",
        "category": {"column": "items.category"},
        "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"},
        "pause": {"kind": "gap", "since": "last_ms", "until": "time_ms"}},
    "tasks": {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}, "like": {}},
    "model": {"name": "shared_bottom"}, "train": {"threads": 1}}


class Log:
    """Three splits, a table of items, a config, and dice."""

    def __init__(self, folder):
        self.folder, self.rng = folder, np.random.default_rng(11)
        for name in (*SPLITS, "items"):
            setattr(self, name, pd.read_parquet(folder / f"{name}.parquet"))
        self.config = copy.deepcopy(CONFIG)
        self.features = self.config["features"]

    def each(self, splits=SPLITS, **columns):
        for s in splits:
            rows = getattr(self, s)
            setattr(self, s, rows.assign(**{c: make(rows) for c, make in columns.items()}))

    def new(self, name, make, kind="number"):
        self.each(**{name: make})
        self.features[name] = kind

    def whole(self):
        return pd.concat([getattr(self, s).assign(_split=s) for s in SPLITS], ignore_index=True)

    def part(self, whole):
        for s in SPLITS:
            setattr(self, s, whole[whole._split == s].drop(columns="_split").reset_index(drop=True))

    def found(self, folder):
        self.items.to_parquet(folder / "items.parquet")
        self.config["data"]["tables"] = {"items": {"path": str(folder / "items.parquet"), "key": "item_id"}}
        return doctor.examine(configs.load(self.config), **{s: getattr(self, s) for s in SPLITS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others") / "log"
    simulate(folder, rows=16_000, users=500, items=200, funnel=["click", "cart", "buy"], drift=0.0)
    return folder


def spend_without_user(log):
    log.new("paid", lambda d: np.where(d.buy == 1, log.rng.lognormal(3, 1, len(d)), 0.0))
    log.config["data"]["user"] = None


def refund(log):
    log.new("refund", lambda d: np.where((d.buy == 1) & (log.rng.random(len(d)) < .7), log.rng.lognormal(3, 1, len(d)),
                                         0.0))


def null_unless_clicked(log):
    log.each(price=lambda d: d.price.where(log.rng.random(len(d)) > np.where(d.click == 1, .04, .4)))


def paid_status(log):
    log.new("status", lambda d: np.where(
        ((d.buy == 1) & (log.rng.random(len(d)) < .6)) | (log.rng.random(len(d)) < .002), "paid",
        log.rng.choice(["open", "new"], len(d))), "id")


def tracked_in_mail(log):
    log.new("source", lambda d: np.where(d.scenario == "mail", np.where(d.click == 1, "y", "x"), log.rng.choice(
        ["x", "y"], len(d), p=[.8, .2])), "id")


def next_item(log):
    log.new("next_item", lambda d: np.where((d.click == 1) & (log.rng.random(len(d)) < .8), d.item_id, d.item_id.sample(
        frac=1, random_state=3)), {"kind": "id", "space": "item_id"})


def clicks_today(log):
    day = lambda d: d.time_ms // 86_400_000
    log.new("clicks_today", lambda d: d.assign(day=day(d)).groupby(["user_id", "day"]).click.transform("sum"))


def late_histories(log):
    hit = (log.train.click == 1) & (log.rng.random(len(log.train)) < .15)
    log.train["hist_click"] = [np.append(h, i) if y else h for h, i, y in zip(
        log.train.hist_click, log.train.item_id, hit)]


def ids_of_another_system(log):
    log.each(hist_click=lambda d: [np.asarray(h) + 10**6 for h in d.hist_click])


def late_rows(log):
    w = log.whole()
    late = (w._split != "train") & (log.rng.random(len(w)) < .1)
    log.part(w.assign(_split=w._split.where(~late, "train")))


def likes_turned_in_mail(log):
    log.each(like=lambda d: np.where(d.scenario == "mail", 1 - d.like, d.like))


def likes_not_logged_at_home(log):
    log.train.loc[log.train.scenario == "home", "like"] = 0.0


def only_likes_written(log):
    log.each(like=lambda d: d.like.where((d.like == 1) | (log.rng.random(len(d)) < .01)))


def carts_of_clicks_only(log):
    log.each(cart=lambda d: d.cart.mask(d.click == 0), buy=lambda d: d.buy.mask(d.click == 0))


def purchases_not_yet_in(log):
    day = log.train.time_ms // 86_400_000
    log.train.loc[day == day.max(), "cart"] = 0.0
    log.train.loc[day == day.max(), "buy"] = 0.0


def requests(log):
    log.new("request", lambda d: (d.row_id // 3 * 7919).astype(str), {"hash_buckets": 20_000})


def cents_in_mail(log):
    log.test["price"] *= np.where(log.test.scenario == "mail", 100, 1)


def devices_coded_anew(log):
    v = sorted(log.test.device.dropna().unique())
    log.test["device"] = log.test.device.map(dict(zip(v, v[1:] + v[:1])))


def zeros_for_missing(log):
    log.train["price"] = log.train.price.where(log.rng.random(len(log.train)) > .03)
    log.test["price"] = log.test.price.where(log.rng.random(len(log.test)) > .04, 0.0)


def last_is_next(log):
    w = log.whole().sort_values("time_ms", kind="stable")
    log.part(w.assign(last_ms=w.groupby("user_id").time_ms.shift(-1)))


def stale_table(log):
    log.items = log.items[~log.items.item_id.isin(log.test.item_id.value_counts().index[::3])]


def no_weight_in_mail(log):
    log.each(w=lambda d: np.where(d.scenario == "mail", 0.0, 1.0))
    log.config["data"]["weight"] = "w"


def weight_of_clicks(log):
    log.each(w=lambda d: np.where(d.click == 1, 5.0, 1.0))
    log.config["data"]["weight"] = "w"


PLANTED = {
    "one_column_says_it_all features.paid: .*AUC of 1.000": spend_without_user,
    "a_value_means_yes features.refund: .*means '(buy|cart)' = 1": refund,
    "a_value_means_yes features.price: .* is null on": null_unless_clicked,
    "a_value_means_yes features.status: .*'paid' means 'buy' = 1": paid_status,
    "tells_in_one_scenario features.source: in scenario mail": tracked_in_mail,
    "one_column_says_it_all features.next_item: whether column 'next_item' is the row's 'item_id'": next_item,
    "a_value_means_yes features.clicks_today: .* is 0 on .* 'click' is 1 on none of them": clicks_today,
    "history_holds_the_row features.clicked: the latest element": late_histories,
    "history_runs_back features.clicked: .*pairs of a user's rows of test": lambda log: log.each(
        ["test"], hist_click=lambda d: [h[::-1] for h in d.hist_click]),
    "nothing_in_common features.clicked": ids_of_another_system,
    "time_runs_back data.test: .*rows of train .* later": late_rows,
    "odd_scenarios data.scenario: valid has no row of scenario mail": lambda log: setattr(
        log, "valid", log.valid[log.valid.scenario != "mail"]),
    "a_value_means_yes tasks.like: in scenario 'mail'": likes_turned_in_mail,
    "odd_scenarios tasks.like: .*scenario home of train": likes_not_logged_at_home,
    "odd_labels tasks.like: .* is observed on": only_likes_written,
    "odd_labels tasks.cart: .* with 'click' = 0": carts_of_clicks_only,
    "rates_move tasks.click: .*data.negatives_kept says": lambda log: log.config["data"].update(
        negatives_kept={"task": "click", "rate": 0.2}),
    "rates_move tasks.cart: .*latest twentieth": purchases_not_yet_in,
    "row_ids features.request: .*do not come again": requests,
    "drift features.price: .*lie outside of all of train": cents_in_mail,
    "drift features.price: .*lie outside of all of train .*here 0 to": zeros_for_missing,
    "drift features.device": devices_coded_anew,
    "from_the_future features.pause: .*below 0": last_is_next,
    "nulls_explode data.tables.items: .*lacks the keys": stale_table,
    "heavy_weights data.weight: .*scenario mail has weight 0": no_weight_in_mail,
    "heavy_weights data.weight: the weight alone ranks 'click'": weight_of_clicks,
}


@pytest.mark.parametrize("said", PLANTED)
def test_a_fault_that_an_outsider_planted_is_found_and_named(folder, tmp_path, said):
    log = Log(folder)
    PLANTED[said](log)
    found = [f"{f.code} {f.where}: {f.said}" for f in log.found(tmp_path).findings]
    assert any(re.match(said, f) for f in found), found


def weekdays(log):
    """Test is one day, whose value train has; so has every other day of train its own."""
    log.new("weekday", lambda d: (d.time_ms // 86_400_000) % 7, {"num_buckets": 7})


def rates_of_earlier_days(log):
    """What a careful store of features gives; it begins at the prior, and widens."""
    w = log.whole()
    day = w.time_ms // 86_400_000
    each = w.groupby(["item_id", day]).click.agg(["sum", "count"])
    before = each.groupby(level=0).cumsum() - each
    rate = (before["sum"] + 0.17 * 20) / (before["count"] + 20)
    log.part(w.assign(item_ctr=rate.reindex(pd.MultiIndex.from_arrays([w.item_id, day])).to_numpy()))
    log.features["item_ctr"] = "number"


def warming_up(log):
    """Histories and gaps are empty on the log's first days, and fill: half of train, hardly any of test."""
    early = log.train.index < 0.5 * len(log.train)
    log.train["last_ms"] = log.train.last_ms.mask(early & (log.rng.random(len(log.train)) < .9))
    log.train["hist_click"] = [[] if e else h for e, h in zip(early, log.train.hist_click)]


def sampled_and_declared(log):
    log.train = log.train[(log.train.click == 1) | (log.rng.random(len(log.train)) < .2)]
    log.config["data"]["negatives_kept"] = {"task": "click", "rate": 0.2}


def dearer(log):
    log.test["price"] *= 1.03


@pytest.mark.parametrize("harmless", [weekdays, rates_of_earlier_days, warming_up,
                                      sampled_and_declared, dearer])
def test_what_an_outsider_thought_harmless_is_left_alone(folder, tmp_path, harmless):
    log = Log(folder)
    harmless(log)
    found = log.found(tmp_path)
    assert found.worst("warning") == [], found.lines()


# ---- a trained run

RUN = """
data: {dir: log, train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: id, scenario: id, device: id, price: number, lists: "off"}
tasks: {click: {}, cart: {after: click}, like: {}}
model: {name: mmoe, represent: {experts: 3, hidden: [16]}, predict: {hidden: [8]}, prepare: [{name: epnet, hidden: 8}]}
calibrate: {method: platt}
train: {threads: 1, epochs: 1, log_every: 1000, batch_size: 256}
evaluate: {resamples: 100, frozen: false, keep_scores: 0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("trained")
    simulate(folder / "log", rows=5000, users=200, items=60, funnel=["click", "cart"], drift=0.0)
    (folder / "shop.yaml").write_text(RUN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "shop.yaml"]) == 0
    return folder


def experts(p):
    return p.model.slots.represent.experts.layers[0]["linear"]


def frozen_tables(p):
    for name, table in p.model.embedding.tables.items():
        table.weight.data.copy_(p.fresh.embedding.tables[name].weight)


def half_closed(p):
    p.model.slots.prepare[0].gate.last.bias.data[::2] = -50


def one_scenario_flat(p):
    """Every answer of the first scenario is the same."""
    first = torch.from_numpy(p.encoded.scenario == 2)
    p.model.slots.predict.register_forward_hook(
        lambda module, given, out: torch.where(first[:, None], 0 * out, out) if len(out) == len(first) else out)


BROKEN = {
    "dead_units .* of the units of 1 .from 0. of 3 layers": lambda p: experts(p).bias.data[1].fill_(-50),
    "dead_units .* layers 0, 1, 2 of 3 side by side in .* are copies": lambda p: experts(p).weight.data.copy_(
        experts(p).weight.data[:1].expand_as(experts(p).weight)),
    "gates_collapsed .* weighs its 3 candidates alike for every row": lambda p: (
        p.model.slots.represent.gates.weight.data.zero_()),
    "gates_collapsed .* is closed for every row on 50.0 %": half_closed,
    "never_learnt train: .*embedding.tables": frozen_tables,
    "task_says_nothing data.scenario: in scenario": one_scenario_flat,
    "served_otherwise metrics.json: auc of 'click'": lambda p: p.model.calibration.line.data[0, :2].neg_(),
    "served_otherwise metrics.json: pcoc of 'click'": lambda p: p.model.calibration.line.data[0, 2].add_(1.5),
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_an_outsider_broke_in_a_run_is_found_and_named(trained, monkeypatch, said):
    monkeypatch.chdir(trained)
    patient = Patient(trained / "runs/shop")
    BROKEN[said](patient)
    code = said.split(" ")[0]
    found = [f"{f.code} {f.where}: {f.said}" for f in doctor.RUN[code](patient)]
    assert any(re.match(said, f) for f in found), found


def test_a_run_that_keeps_no_scores_and_was_left_alone_has_nothing(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert doctor.examine(trained / "runs/shop", data=False).worst("warning") == []
