"""Simulated logs hold the truth they claim, and only what was known when a row was written."""

from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from funnelrank import simulate as module
from funnelrank.errors import ConfigError
from funnelrank.simulate import HISTORY, simulate

TASKS = ("click", "cart", "buy", "like")
FILES = ("train", "valid", "test", "users", "items")
SMALL = {"rows": 2_000, "users": 60, "items": 50}


def rows_of(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(folder / f"{s}.parquet") for s in ("train", "valid", "test"))


def floats(log: pa.Table, name: str) -> np.ndarray:
    return log[name].cast(pa.float64()).to_numpy()          # null -> NaN


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties half."""
    positive, negative = np.sort(score[label == 1]), np.sort(score[label == 0])
    wins = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return wins.sum() / 2 / len(positive) / len(negative)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("log") / "made" / "here"
    simulate(out, rows=60_000, users=1_500, items=800, seed=3)
    return out


@pytest.fixture(scope="module")
def log(folder):
    return rows_of(folder)


# ---- truth

@pytest.mark.parametrize("task", TASKS)
def test_labels_are_drawn_from_the_written_probabilities(log, task):
    y, p = floats(log, task), floats(log, f"p_{task}")
    seen = ~np.isnan(y)
    parts = [seen, seen & (p > np.quantile(p, 0.9)), seen & (p < np.median(p))]
    parts += [seen & (np.asarray(log["scenario"]) == s) for s in ("home", "mail")]
    for part in parts:
        error = np.sqrt((p[part] * (1 - p[part])).sum())
        assert abs((y[part] - p[part]).sum()) < 4 * error


def test_rates_fall_along_the_funnel_as_documented(log):
    means = [floats(log, f"p_{t}").mean() for t in TASKS]
    np.testing.assert_allclose(means, [0.17, 0.051, 0.0153, 0.03], rtol=1e-6)


def test_a_later_step_is_never_likelier_and_never_happens_alone(log):
    for earlier, later in (("click", "cart"), ("cart", "buy")):
        assert (floats(log, f"p_{later}") <= floats(log, f"p_{earlier}")).all()
        assert not ((floats(log, later) == 1) & (floats(log, earlier) == 0)).any()


def test_the_truth_ranks_well(log):
    for task, least, most in (("click", 0.75, 0.86), ("buy", 0.8, 0.92), ("like", 0.72, 0.9)):
        y = floats(log, task)
        seen = ~np.isnan(y)
        assert least < auc(floats(log, f"p_{task}")[seen], y[seen]) < most


def test_spend_is_zero_unless_bought_and_its_mean_is_known(log):
    spend, buy, mean = (floats(log, c) for c in ("spend", "buy", "mean_spend"))
    assert (np.isnan(spend) == np.isnan(buy)).all()
    assert (spend[buy == 0] == 0).all() and (spend[buy == 1] > 0).all()
    seen = ~np.isnan(spend)
    assert abs(spend[seen].mean() - mean[seen].mean()) < 4 * spend[seen].std() / np.sqrt(seen.sum())


def test_a_seed_changes_no_more_than_was_asked(tmp_path):
    simulate(tmp_path / "a", **SMALL)
    simulate(tmp_path / "b", **SMALL, null_rate=0.3, side_tasks=(), missing_labels=0, spend=False)
    a, b = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    for column in ("time_ms", "user_id", "item_id", "hist_buy", "p_buy"):
        assert a[column].equals(b[column])
    assert "spend" not in b.column_names and "like" not in b.column_names


# ---- what a model may see

def test_histories_hold_what_the_user_did_strictly_before(tmp_path):
    simulate(tmp_path, rows=6_000, users=40, items=100, missing_labels=0)
    log = rows_of(tmp_path)
    assert (np.diff(floats(log, "time_ms")) > 0).all()
    past = {c: defaultdict(lambda: deque(maxlen=HISTORY)) for c in ("hist_shown", "hist_click", "hist_buy")}
    last: dict[int, int] = {}
    for row in log.to_pylist():
        user, item = row["user_id"], row["item_id"]
        for column, so_far in past.items():
            assert row[column] == list(so_far[user])
        assert row["last_ms"] == last.get(user)
        last[user] = row["time_ms"]
        past["hist_shown"][user].append(item)
        for step in ("click", "buy"):
            if row[step]:
                past[f"hist_{step}"][user].append(item)
    assert any(len(items) == HISTORY for items in past["hist_shown"].values())


def test_what_a_model_sees_says_something(log, folder):
    """Lengths of histories, the categories in them, and an item's rating each rank clicks by themselves."""
    items = pq.read_table(folder / "items.parquet")
    category = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist()))
    rating = dict(zip(items["item_id"].to_pylist(), items["rating"].to_pylist()))
    test = log.filter(pc.is_valid(log["click"])).slice(30_000)
    y = floats(test, "click")
    rows = list(zip(test["item_id"].to_pylist(), test["hist_click"].to_pylist(), test["hist_shown"].to_pylist()))
    assert auc(np.array([len(c) / (len(s) + 3) for _, c, s in rows]), y) > 0.55
    matches = [(sum(category[i] == category[x] for i in c) + 0.17) / (sum(category[i] == category[x] for i in s) + 1)
               for x, c, s in rows]
    assert auc(np.array(matches), y) > 0.55
    assert auc(np.array([rating[x] or 3.5 for x, _, _ in rows]), y) > 0.53


def test_every_key_is_in_its_table_and_needs_64_bits(log, folder):
    for table, key in (("users", "user_id"), ("items", "item_id")):
        known = pq.read_table(folder / f"{table}.parquet")[key].to_pylist()
        assert len(set(known)) == len(known)
        assert set(log[key].to_pylist()) <= set(known)
        assert min(known) > 2**53 and len({float(k) for k in known}) < len(known)


def test_scenarios_run_from_head_to_tail_and_differ(log):
    scenario = np.asarray(log["scenario"])
    sizes = [(scenario == s).sum() for s in ("home", "search", "deals", "mail")]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sizes[-1] and sum(sizes) == len(log)
    for task in TASKS:
        p = floats(log, f"p_{task}")
        means = [p[scenario == s].mean() for s in ("home", "search", "deals", "mail")]
        assert max(means) > 1.1 * min(means)


def test_items_are_popular_by_a_power_law(log):
    counts = np.sort(np.unique(np.asarray(log["item_id"]), return_counts=True)[1])[::-1]
    assert counts[:80].sum() > 0.4 * len(log)
    assert counts[-200:].sum() < 0.1 * len(log)


def test_nulls_come_at_the_rate_asked(tmp_path):
    simulate(tmp_path, rows=20_000, users=4_000, items=4_000, null_rate=0.25)
    log, users, items = rows_of(tmp_path), *(pq.read_table(tmp_path / f"{t}.parquet") for t in ("users", "items"))
    for table, columns in ((log, ("price", "device", "badges")), (users, ("age_band", "city", "level", "activity")),
                           (items, ("category", "brand", "tags", "rating"))):
        for column in columns:
            assert table[column].null_count / len(table) == pytest.approx(0.25, abs=0.03), column
    for table, columns in ((log, ("user_id", "item_id", "scenario", "hist_shown", "p_buy", "hour")),
                           (users, ("user_id",)), (items, ("item_id", "seller_id"))):
        assert all(table[c].null_count == 0 for c in columns)
    lengths = {len(tags) for tags in items["tags"].to_pylist() if tags is not None}
    assert lengths == {1, 2, 3} and "" in log["badges"].to_pylist()


def test_no_nulls_but_first_visits_when_none_are_asked(tmp_path):
    simulate(tmp_path, **SMALL, null_rate=0, missing_labels=0)
    log = rows_of(tmp_path)
    assert {c for c in log.column_names if log[c].null_count} == {"last_ms"}
    assert log["last_ms"].null_count == len(set(log["user_id"].to_pylist()))


# ---- labels that are not there, and days

def test_labels_are_missing_at_random_as_asked(tmp_path, log):
    for task in TASKS:
        assert log[task].null_count / len(log) == pytest.approx(0.02, abs=0.004)
    simulate(tmp_path, **SMALL, missing_labels={"buy": 0.5})
    one = rows_of(tmp_path)
    assert one["buy"].null_count / len(one) == pytest.approx(0.5, abs=0.05)
    assert one["spend"].null_count == one["buy"].null_count and one["click"].null_count == 0


def test_the_last_hours_of_train_do_not_know_the_last_step(tmp_path):
    simulate(tmp_path, **SMALL, missing_labels=0, delay_hours=30)
    train, valid = (pq.read_table(tmp_path / f"{s}.parquet") for s in ("train", "valid"))
    time, buy = floats(train, "time_ms"), floats(train, "buy")
    cut = module.START_MS + 8 * module.DAY_MS - 30 * module.HOUR_MS
    assert (np.isnan(buy) == (time >= cut)).all() and np.isnan(buy).any()
    assert train["cart"].null_count == 0 and valid["buy"].null_count == 0


@pytest.mark.parametrize(("days", "first"), [(3, (0, 1, 2)), (10, (0, 8, 9)), (30, (0, 24, 27))])
def test_the_last_days_are_valid_and_test(tmp_path, days, first):
    made = simulate(tmp_path, **SMALL, days=days)
    tables = [pq.read_table(tmp_path / f"{s}.parquet") for s in ("train", "valid", "test")]
    assert tuple(min(t["day"].to_pylist()) for t in tables) == first
    assert set(pa.concat_tables(tables)["day"].to_pylist()) == set(range(days))
    assert [len(t) for t in tables] == list(made["rows"].values()) and sum(made["rows"].values()) == 2_000
    assert pa.concat_tables(tables)["row_id"].to_pylist() == list(range(2_000))


def test_days_drift_when_asked_and_only_then(tmp_path):
    def moved(folder: Path) -> tuple[float, float]:
        """How far daily mean p of click strays (of its mean), and how far the first and last day's items differ."""
        log = rows_of(folder)
        day, p = floats(log, "day"), floats(log, "p_click")
        daily = np.array([p[day == d].mean() for d in range(10)])
        shares = []
        for d in (0, 9):
            _, place = np.unique(np.asarray(log["item_id"]), return_inverse=True)
            counts = np.bincount(place[day == d], minlength=place.max() + 1)
            shares.append(counts / counts.sum())
        return daily.std() / daily.mean(), np.abs(shares[0] - shares[1]).sum() / 2

    simulate(tmp_path / "still", rows=30_000, items=100, drift=0)
    simulate(tmp_path / "wild", rows=30_000, items=100, drift=1.0)
    still, wild = moved(tmp_path / "still"), moved(tmp_path / "wild")
    assert still[0] < 0.03 and still[1] < 0.1
    assert wild[0] > 3 * still[0] and wild[1] > 3 * still[1]


# ---- files

def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate(tmp_path / name, **SMALL, seed=seed)
    for name in FILES:
        a, b, c = ((tmp_path / f / f"{name}.parquet").read_bytes() for f in "abc")
        assert a == b and a != c


def test_files_stream_and_carry_checksums(folder):
    file = pq.ParquetFile(folder / "train.parquet", page_checksum_verification=True)
    assert file.num_row_groups == -(-file.metadata.num_rows // module.ROW_GROUP) > 1
    assert file.read().num_rows == file.metadata.num_rows
    raw = bytearray((folder / "train.parquet").read_bytes())
    raw[file.metadata.row_group(0).column(5).data_page_offset + 200] ^= 1
    with pytest.raises(OSError, match="(?i)crc|checksum"):
        pq.ParquetFile(pa.BufferReader(bytes(raw)), page_checksum_verification=True).read_row_group(0)


def test_a_disk_that_fills_leaves_the_old_log_and_no_litter(tmp_path, monkeypatch):
    simulate(tmp_path, **SMALL)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    real, written = pq.write_table, []

    def full(table, file, **settings):
        written.append(file)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real(table, file, **settings)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(ConfigError, match=r"simulate\.out: .*cannot be written \(No space left on device\)"):
        simulate(tmp_path, **SMALL, seed=1)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_funnel_of_any_length(tmp_path, steps):
    funnel = [f"step{k}" for k in range(steps)]
    made = simulate(tmp_path, rows=20_000, users=200, items=80, funnel=funnel, side_tasks=(), missing_labels=0)
    log = rows_of(tmp_path)
    y, p = (np.stack([floats(log, prefix + t) for t in funnel]) for prefix in ("", "p_"))
    assert (np.diff(y, axis=0) <= 0).all() and (np.diff(p, axis=0) <= 0).all()
    np.testing.assert_allclose(p.mean(1), 0.17 * 0.3 ** np.arange(steps), rtol=1e-6)
    assert made["rates"] == pytest.approx(dict(zip(funnel, y.mean(1))))
    assert {c for c in log.column_names if c.startswith("hist_")} == {
        "hist_shown", "hist_step0", f"hist_step{steps - 1}"}


def test_the_smallest_world(tmp_path):
    simulate(tmp_path, rows=3, users=1, items=1, scenarios=1, days=3, funnel=("click",), side_tasks=())
    assert [pq.read_metadata(tmp_path / f"{n}.parquet").num_rows for n in FILES] == [1, 1, 1, 1, 1]
    assert [len(h) for h in rows_of(tmp_path)["hist_shown"].to_pylist()] == [0, 1, 2]


# ---- refusals

@pytest.mark.parametrize(("asked", "sentence"), [
    ({"rows": 0}, "simulate.rows: 0; give a whole number from 1 to 10000000"),
    ({"rows": 5}, "simulate.rows: 5; that leaves days empty; give at least 10"),
    ({"rows": 10**8}, "simulate.rows: 100000000; give a whole number from 1 to 10000000"),
    ({"rows": 10.5}, "simulate.rows: 10.5; give a whole number"),
    ({"users": True}, "simulate.users: True; give a whole number"),
    ({"items": -1}, "simulate.items: -1;"),
    ({"scenarios": 0}, "simulate.scenarios: 0;"),
    ({"days": 2}, "simulate.days: 2; give a whole number from 3 to 1000, so that train, valid and test have a day"),
    ({"seed": -1}, "simulate.seed: -1;"),
    ({"null_rate": 1}, "simulate.null_rate: 1; give a share from 0 up to, but not, 1"),
    ({"null_rate": float("nan")}, "simulate.null_rate: nan;"),
    ({"missing_labels": -0.1}, "simulate.missing_labels: -0.1;"),
    ({"missing_labels": {"by": 0.1}}, "simulate.missing_labels.by: no task 'by'; tasks are .*did you mean 'buy'"),
    ({"missing_labels": {"buy": 2}}, "simulate.missing_labels.buy: 2;"),
    ({"drift": -1}, "simulate.drift: -1; give 0 or a positive number"),
    ({"drift": "much"}, "simulate.drift: 'much'"),
    ({"mood": -1}, "simulate.mood: -1; give 0 or a positive number"),
    ({"next_rate": 1}, "simulate.next_rate: 1; give a share above 0 and below 1"),
    ({"delay_hours": 200}, "simulate.delay_hours: 200; no label of train would be left"),
    ({"funnel": ()}, r"simulate.funnel: \(\) .*at least one step"),
    ({"funnel": "click"}, "simulate.funnel: 'click' .*give a list of names"),
    ({"funnel": ("click", "a b")}, "simulate.funnel: 'a b'; that cannot name a task"),
    ({"side_tasks": ("click",)}, "simulate.side_tasks: 'click'; two tasks have this name"),
    ({"side_tasks": ("p_click",)}, "simulate.side_tasks: 'p_click'; this is the name of another column"),
    ({"funnel": ("price",)}, "simulate.funnel: 'price'; this is the name of another column"),
])
def test_impossible_arguments_are_refused_in_a_sentence(tmp_path, asked, sentence):
    with pytest.raises(ConfigError, match=sentence):
        simulate(tmp_path / "log", **asked)
    assert not (tmp_path / "log").exists()


def test_all_faults_are_named_at_once(tmp_path):
    (tmp_path / "log").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        simulate(tmp_path / "log", users=0, null_rate=2, funnel=("a", "a"))
    assert [m.split(":")[0] for m in dict.fromkeys(caught.value.messages)] == [
        "simulate.users", "simulate.funnel", "simulate.null_rate", "simulate.out"]
    assert (tmp_path / "log").read_text() == "mine"


def test_an_item_that_is_launched_is_shown_from_its_day_on(tmp_path):
    simulate(tmp_path / "new", rows=6_000, users=100, items=200, launches=0.5, drift=0, seed=4)
    simulate(tmp_path / "all", rows=6_000, users=100, items=200, drift=0, seed=4)
    first = {}
    for name in ("new", "all"):
        rows = pa.concat_tables([pq.read_table(tmp_path / name / f"{s}.parquet") for s in ("train", "valid", "test")])
        seen = rows.group_by("item_id").aggregate([("day", "min")]).to_pydict()
        first[name] = dict(zip(seen["item_id"], seen["day_min"]))
    late = {name: sum(day > 4 for day in days.values()) for name, days in first.items()}
    assert late["new"] > 40 and late["new"] > 2 * late["all"]


@pytest.mark.parametrize("launches", [-0.1, 1.0, float("nan")])
def test_a_share_of_launches_is_a_share(tmp_path, launches):
    with pytest.raises(ConfigError, match="simulate.launches: .*share from 0"):
        simulate(tmp_path, rows=100, launches=launches)


def test_who_clicks_is_chosen_by_what_can_be_known_as_alike_says_and_by_what_cannot_as_mood_says(tmp_path):
    told = {}
    for name, asked in (("none", {"alike": 0}), ("usual", {}), ("known", {"alike": 3}), ("unseen", {"mood": 1.5})):
        simulate(tmp_path / name, rows=8_000, users=400, items=200, side_tasks=(), seed=5, next_rate=0.2, **asked)
        rows = pq.read_table(tmp_path / name / "train.parquet").to_pandas()
        step = rows.p_cart / rows.p_click
        told[name] = np.corrcoef(np.log(rows.p_click / (1 - rows.p_click)), np.log(step / (1 - step)))[0, 1]
        assert rows.p_cart.mean() == pytest.approx(0.2 * rows.p_click.mean(), rel=0.05)
    assert abs(told["none"]) < 0.3 and told["none"] + 0.2 < told["usual"] < min(told["known"], told["unseen"]) - 0.2
