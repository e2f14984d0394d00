"""Faults planted in a small log, one by one: each is found, and none is where nothing was planted."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from funnelrank import config as configs
from funnelrank import doctor
from funnelrank.simulate import simulate

LOGS = os.environ.get("FUNNELRANK_DATA")
FEATURES = {"item_id": "id", "scenario": "id", "device": "id", "hour": "id", "price": "number",
            "badges": {"kind": "bag", "separator": "|"}, "category": {"column": "items.category"},
            "tags": {"kind": "bag", "column": "items.tags"}, "city": {"column": "users.city"},
            "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"},
            "pause": {"kind": "gap", "since": "last_ms", "until": "time_ms"}}


class World:
    """A simulated log as frames, and a config as a mapping; a fault changes either."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.splits = {s: pd.read_parquet(folder / f"{s}.parquet") for s in ("train", "valid", "test")}
        self.config = {
            "data": {"scenario": "scenario", "user": "user_id", "time": "time_ms", "tables": {
                "users": {"path": str(folder / "users.parquet"), "key": "user_id"},
                "items": {"path": str(folder / "items.parquet"), "key": "item_id"}}},
            "features": dict(FEATURES), "tasks": {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}},
            "model": {"name": "shared_bottom"}, "train": {"threads": 1}}
        self.rng = np.random.default_rng(3)

    def each(self, change):
        self.splits = {s: change(f.copy()) for s, f in self.splits.items()}

    def column(self, name, make, kind="number"):
        self.each(lambda f: f.assign(**{name: make(f)}))
        self.config["features"][name] = kind

    def whole(self):
        return pd.concat(self.splits.values())

    def table(self, name, change):
        path = self.folder.parent / f"{name}-{id(self)}.parquet"
        change(pd.read_parquet(self.folder / f"{name}.parquet")).to_parquet(path)
        self.config["data"]["tables"][name]["path"] = str(path)

    def found(self):
        return doctor.examine(configs.load(self.config), **self.splits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "log"
    simulate(folder, rows=12_000, users=400, items=150, funnel=["click", "cart", "buy"], drift=0.0)
    return folder


def test_a_clean_log_has_nothing(folder):
    found = World(folder).found()
    assert [f for f in found.findings if f.severity != "note"] == []
    assert found.lines()[-1].startswith("config: ")


def rates(w, key, label="click", of=("train", "valid", "test")):
    return w.whole()[lambda f: f[label].notna()].groupby(key)[label].mean()


def own_mean(w, f):
    """The mean click of the user's other rows of train."""
    t = w.splits["train"]
    g = t.groupby("user_id").click.agg(["sum", "count"]).reindex(f.user_id).to_numpy()
    if len(f) != len(t):
        return g[:, 0] / g[:, 1]
    y = f.click.fillna(0).to_numpy()
    return (g[:, 0] - y) / np.maximum(g[:, 1] - f.click.notna(), 1)


def later_list(w, f):
    """Every item that the user clicks in the split, at any time."""
    return f.user_id.map(f[f.click == 1].groupby("user_id").item_id.agg(list)).map(
        lambda x: x if isinstance(x, list) else [])


def mixed(w):
    rows = w.whole().sample(frac=1, random_state=0)
    w.splits = {"train": rows[:9000].sort_values("time_ms"), "valid": rows[9000:10500], "test": rows[10500:]}


def of_other_users(w):
    rows = w.whole()
    part = rows.user_id.map(dict(zip(rows.user_id.unique(), w.rng.random(rows.user_id.nunique()))))
    w.splits = {"train": rows[part < .7], "valid": rows[(part >= .7) & (part < .85)], "test": rows[part >= .85]}
    w.config["data"]["time"] = None
    w.config["features"]["user_id"] = {"min_count": 2}


def twice(w):
    t = w.splits["train"]
    w.splits["train"] = pd.concat([t, t.sample(500, random_state=0)]).sort_values("time_ms")


def leaked_rows(w):
    w.splits["test"] = pd.concat([w.splits["test"], w.splits["train"].sample(60, random_state=0)])


def conflicting(w):
    t = w.splits["train"]
    again = t.sample(400, random_state=0).assign(click=lambda f: 1 - f.click.fillna(0), cart=0, buy=0)
    w.splits["train"] = pd.concat([t, again]).sort_values("time_ms")


def unnested(w):
    w.config["data"]["contradictions"] = "keep"
    w.each(lambda f: f.assign(click=f.click.where(w.rng.random(len(f)) < .6, 0)))


def only_ones(w):
    w.each(lambda f: f.assign(click=f.click.where(f.click == 1)))


def shuffled_labels(w):
    t = w.splits["valid"]
    shuffled = t[["click", "cart", "buy"]].sample(frac=1, random_state=0)
    w.splits["valid"] = t.assign(**{c: shuffled[c].to_numpy() for c in shuffled})
    w.config["data"]["contradictions"] = "keep"


def late_labels(w):
    t = w.splits["train"]
    w.splits["train"] = t.assign(**{c: t[c].where(np.arange(len(t)) < .94 * len(t), t[c] * 0)
                                    for c in ("click", "cart", "buy")})


def statistics(w):
    """Clicks of each item over the whole log, in the table of items."""
    k = w.whole().groupby("item_id").click.sum()
    w.table("items", lambda f: f.assign(clicks=f.item_id.map(k).fillna(0)))
    w.config["features"]["clicks"] = {"kind": "number", "column": "items.clicks"}


def other_keys(w):
    w.table("users", lambda f: f.assign(user_id=f.user_id + 10**9))


def half_sampled(w):
    w.splits["train"] = w.splits["train"][lambda f: (f.click == 1) | (w.rng.random(len(f)) < .1)]


PLANTED = {
    "an amount paid": ("one_column_says_it_all", lambda w: w.column(
        "amount", lambda f: f.click.fillna(0) * f.price.fillna(1))),
    "a noisy outcome": ("one_column_says_it_all", lambda w: w.column(
        "watched", lambda f: f.click.fillna(0) * 2 + w.rng.exponential(1, len(f)))),
    "an outcome as text": ("one_column_says_it_all", lambda w: w.column(
        "state", lambda f: np.where(f.click == 1, "done", "open"), "id")),
    "an order id of buyers only": ("a_value_means_yes", lambda w: w.column(
        "coupon", lambda f: np.where((f.click == 1) & (w.rng.random(len(f)) < .3), "c1", None), "id")),
    "a history with the row in it": ("history_holds_the_row", lambda w: w.each(lambda f: f.assign(hist_click=[
        [*h, i] if c == 1 else h for h, i, c in zip(f.hist_click, f.item_id, f.click)]))),
    "a history of the whole period": ("history_holds_the_row", lambda w: w.each(
        lambda f: f.assign(hist_click=later_list(w, f)))),
    "the time of the next visit": ("from_the_future", lambda w: w.column(
        "next_ms", lambda f: f.groupby("user_id").time_ms.shift(-1).astype("Int64"))),
    "a gap to the next visit": ("from_the_future", lambda w: w.column(
        "next_ms", lambda f: f.groupby("user_id").time_ms.shift(-1).astype("Int64"),
        {"kind": "gap", "since": "time_ms", "until": "next_ms"})),
    "clicks of items, counted to the end": ("statistic_of_the_whole_period", statistics),
    "click rates of users, to the end": ("statistic_of_the_whole_period", lambda w: w.column(
        "user_rate", lambda f: f.user_id.map(rates(w, "user_id")))),
    "a mean that leaves the row out": ("encodes_the_rows_own_label", lambda w: w.column(
        "user_mean", lambda f: own_mean(w, f))),
    "target encoding of rare pairs": ("fits_train_too_well", lambda w: w.column("pair_mean", lambda f: pd.Series(
        list(zip(f.user_id, f.hour))).map(w.splits["train"].groupby(["user_id", "hour"]).click.mean().to_dict()).fillna(
            .17).to_numpy())),
    "valid is test": ("same_rows", lambda w: w.splits.update(valid=w.splits["test"])),
    "train rows in test": ("same_rows", leaked_rows),
    "rows written twice": ("repeated_rows", twice),
    "rows with two answers": ("rows_that_disagree", conflicting),
    "carts without a click": ("broken_funnel", unnested),
    "labels without a 0": ("odd_labels", only_ones),
    "one label twice": ("odd_labels", lambda w: (w.each(lambda f: f.assign(like=f.click)),
                                                 w.config["tasks"].update(like={}))),
    "a random split": ("time_runs_back", mixed),
    "train after test": ("time_runs_back", lambda w: w.splits.update(train=w.splits["test"], test=w.splits["train"])),
    "train sorted by user": ("rows_in_blocks", lambda w: w.splits.update(
        train=w.splits["train"].sort_values(["user_id", "time_ms"]))),
    "train sorted by label": ("rows_in_blocks", lambda w: w.splits.update(
        train=w.splits["train"].sort_values("click", kind="stable"))),
    "train sorted by scenario": ("rows_in_blocks", lambda w: w.splits.update(
        train=w.splits["train"].sort_values("scenario", kind="stable"))),
    "a split by user": ("users_apart", of_other_users),
    "negatives sampled in train": ("rates_move", half_sampled),
    "labels that are not yet in": ("rates_move", late_labels),
    "labels shuffled in valid": ("train_does_not_carry", shuffled_labels),
    "weights of a few": ("heavy_weights", lambda w: (w.each(lambda f: f.assign(w=w.rng.pareto(.4, len(f)))),
                                                     w.config["data"].update(weight="w"))),
    "scenarios renamed in test": ("odd_scenarios", lambda w: w.splits.update(
        test=w.splits["test"].assign(scenario=lambda f: f.scenario.str.upper()))),
    "a column that stands still": ("dead_columns", lambda w: w.column("version", lambda f: "v1", "id")),
    "keys that do not meet": ("dead_columns", other_keys),
    "an id of rows": ("row_ids", lambda w: w.column("row_id", lambda f: f.row_id, {"min_count": 1})),
    "a number of rows": ("row_ids", lambda w: w.column("row_id", lambda f: f.row_id)),
    "a user's id as a number": ("row_ids", lambda w: w.column("user_id", lambda f: f.user_id)),
    "an id too rare for its vocabulary": ("values_too_rare", lambda w: w.column(
        "session", lambda f: f.row_id // 3, {"min_count": 50})),
    "a column that test lacks": ("nulls_explode", lambda w: w.splits.update(test=w.splits["test"].assign(device=None))),
    "another currency in test": ("drift", lambda w: w.splits.update(
        test=w.splits["test"].assign(price=lambda f: f.price * 100))),
    "ids coded anew in test": ("drift", lambda w: w.splits.update(
        test=w.splits["test"].assign(item_id=lambda f: f.item_id + 10**6))),
    "test events with another price": ("same_rows", lambda w: w.splits.update(test=pd.concat([
        w.splits["test"], w.splits["train"].sample(60, random_state=0).assign(price=1.0)]))),
    "a column shuffled in train": ("fits_train_too_well", lambda w: (
        w.column("watched", lambda f: f.click.fillna(0) + w.rng.exponential(1, len(f))),
        w.splits.update(train=w.splits["train"].assign(watched=lambda f: w.rng.permutation(f.watched))))),
    "a scenario where nothing is logged": ("odd_scenarios", lambda w: w.each(lambda f: f.assign(**{
        c: f[c].where(f.scenario != "search", f[c] * 0) for c in ("click", "cart", "buy")}))),
    "rows as users": ("odd_users", lambda w: w.config["data"].update(user="row_id")),
    "a robot": ("odd_users", lambda w: w.each(lambda f: f.assign(
        user_id=f.user_id.where(w.rng.random(len(f)) < .8, 7)))),
    "two spellings": ("spellings", lambda w: w.each(lambda f: f.assign(
        device=f.device.where(w.rng.random(len(f)) < .7, f.device.str.upper())))),
    "-999 for nothing": ("codes_for_missing", lambda w: w.each(lambda f: f.assign(price=f.price.fillna(-999)))),
    "labels missing in test": ("odd_labels", lambda w: w.splits.update(test=w.splits["test"].assign(
        click=lambda f: f.click.where(w.rng.random(len(f)) < .3)))),
    "a history that begins with the latest": ("history_runs_back", lambda w: w.each(
        lambda f: f.assign(hist_click=f.hist_click.map(lambda h: h[::-1])))),
    "a history said to begin with the latest": ("history_runs_back", lambda w: w.config["features"].update(
        clicked=FEATURES["clicked"] | {"latest": "first"})),
    "histories of other ids": ("nothing_in_common", lambda w: w.each(lambda f: f.assign(
        hist_click=f.hist_click.map(lambda h: [i + 10**6 for i in h])))),
    "an outcome in one scenario": ("tells_in_one_scenario", lambda w: w.column("source", lambda f: np.where(
        f.scenario == "deals", np.where(f.click == 1, "y", "x"), w.rng.choice(["x", "y"], len(f))), "id")),
    "a column under two names": ("same_columns", lambda w: w.column("gadget", lambda f: f.device.map(
        {"ios": "a", "android": "b", "web": "c"}), "id")),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(folder, fault):
    code, plant = PLANTED[fault]
    world = World(folder)
    plant(world)
    found = world.found()
    assert code in {f.code for f in found.findings}, found.lines()


def test_every_detector_has_a_planted_fault():
    assert {code for code, _ in PLANTED.values()} == set(doctor.DATA)


@pytest.mark.parametrize("strange", [
    lambda f: f[:4], lambda f: f.assign(click=None), lambda f: f.assign(user_id=None), lambda f: f.assign(price=np.inf),
    lambda f: f.assign(time_ms=None), lambda f: f.assign(hist_click=[[]] * len(f))])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_strange_rows_are_looked_at_all_the_same(folder, strange):
    world = World(folder)
    world.each(lambda f: strange(f[:1500]))
    assert world.found().to_json()


@pytest.mark.skipif(not LOGS, reason="FUNNELRANK_DATA names no folder of public logs")
@pytest.mark.parametrize("name, log", [("kuairand", "kuairand_pure"), ("globo", "globo_news"),
                                       ("hillstrom", "hillstrom"), ("census", "census_income")])
def test_public_logs_have_what_is_truly_there(name, log):
    config = configs.load(Path(__file__).parents[2] / f"examples/{name}/aitm.yaml", [f"data.dir={LOGS}/{log}"])
    said = {(f.code, f.where) for f in doctor.examine(config).findings}
    true = {("repeated_rows", f"data.{s}") for s in ("train", "valid", "test")} | {
        ("broken_funnel", f"tasks.{t}.after") for t in ("long_view", "is_like")}
    assert said == (true if name == "kuairand" else set())


@pytest.mark.skipif(not LOGS, reason="FUNNELRANK_DATA names no folder of public logs")
def test_the_statistics_of_kuairands_videos_are_a_leak():
    config = configs.load(Path(__file__).parents[2] / "examples/kuairand/aitm.yaml", [
        f"data.dir={LOGS}/kuairand_pure", "data.tables.items.path=items_with_statistics.parquet",
        "features.plays={kind: number, column: items.play_cnt}",
        "features.progress={kind: number, column: items.play_progress}"])
    (said,) = [f for f in doctor.examine(config).findings if f.code == "statistic_of_the_whole_period"]
    assert said.evidence["columns"].keys() == {"items.play_cnt", "items.play_progress"}
