"""Logs with a known truth: who saw what, what happened, and with which probability it would have.

    train.parquet, valid.parquet, test.parquet   rows in time order; valid and test are the last days
    users.parquet, items.parquet                 one row a user, one row an item

    column             type           holds
    ---- train, valid, test
    row_id             int64          0, 1, ... over the three files
    day                int32          0 .. days - 1
    time_ms            int64          milliseconds since 1970 (UTC), strictly increasing
    last_ms            int64          time_ms of the same user's row before this one; null on his first
    hour               int8           0 .. 23
    user_id, item_id   int64          about 2^60: floats would mix them up
    scenario           string         where it was shown; from a head scenario to a tail one
    device             string         nulls at null_rate
    price              float64        log-normal; nulls at null_rate
    badges             string         any of five, as 'new|sale'; '' for none; nulls at null_rate
    hist_shown         list<int64>    the same user's last 30 items strictly before this row, oldest first
    hist_<step>        list<int64>    likewise, those that reached the funnel's first and its last step,
                                      whether or not their labels were observed
    <task>             int8           1, 0, or null for "not observed"; a funnel's steps are nested
    spend              float64        money spent, 0 unless the last step happened; null where that label is
    p_<task>           float64        probability of the task over all impressions; labels are drawn from it
    mean_spend         float64        expected spend over all impressions
    ---- users
    user_id            int64
    age_band, city     string         nulls at null_rate
    level              int64          0 .. 4; nulls at null_rate
    activity           float64        about how often the user comes; nulls at null_rate
    ---- items
    item_id, seller_id int64
    category, brand    string         nulls at null_rate
    tags               list<string>   one to three; nulls at null_rate
    rating             float64        quality seen through noise; nulls at null_rate

Truth: a user's taste meets an item's nature in a few latent dimensions, which each task weighs in its own
way. To this come the item's quality, the user's keenness, price, badges, the hour, the time since the last
visit, and the scenario: a shift per task, a gain on taste, a leaning to some categories. A step's probability
is that of the step before times a sigmoid of all this; rates are .17, .051, .0153, ... down the funnel and .03
for side tasks. Taste is never shown: what a model can know of it stands in histories and attributes. How far those
who take a step are chosen for the next one is `alike`, by what can be known of them, and `mood`, by what cannot.

Every part draws from a random stream of its own: asking for other tasks or more nulls changes nothing else.
"""

import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from funnelrank.errors import ConfigError, did_you_mean, listing

Array = NDArray[Any]
Columns = dict[str, Array]

FIRST_RATE, NEXT_RATE, SIDE_RATE = 0.17, 0.3, 0.03
LATENT = 8                      # dimensions of taste
HISTORY = 30
MORE_UNITS = 0.3                # a purchase is 1 + Poisson(.3) units
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")
BADGES = ("new", "sale", "best", "free shipping", "last chance")
BRANDS = [f"brand_{k:03d}" for k in range(120)]
CATEGORIES = [f"category_{k:02d}" for k in range(24)]
CITIES = [f"city_{k:02d}" for k in range(40)]
DEVICES = ("ios", "android", "web")
SCENARIOS = ("home", "search", "deals", "mail", "feed", "push")
TAGS = [f"tag_{k:02d}" for k in range(60)]
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_767_225_600_000    # 1 January 2026, 00:00 UTC
ROW_GROUP = 16_384              # small, so that even a demo streams
MOST = 10_000_000               # rows, users, items: they are held in memory
COLUMNS = {"row_id", "day", "time_ms", "last_ms", "hour", "user_id", "item_id", "scenario", "device", "price",
           "badges", "hist_shown", "spend", "mean_spend"}


def simulate(out: Path | str, *, rows: int = 200_000, users: int = 5_000, items: int = 2_000,
             scenarios: int = 4, days: int = 10, funnel: Sequence[str] = ("click", "cart", "buy"),
             side_tasks: Sequence[str] = ("like",), spend: bool = True, seed: int = 0,
             null_rate: float = 0.02, missing_labels: float | Mapping[str, float] = 0.02,
             delay_hours: float = 0.0, drift: float = 0.2, launches: float = 0.0, alike: float = 1.0,
             mood: float = 0.0, next_rate: float = NEXT_RATE) -> dict[str, Any]:
    """Write a log of `rows` impressions and its two dimension tables into the folder `out`.

    rows            of the three files together, at most 10 million: all are held in memory meanwhile
    days            the last tenth (at least one day) is test, the tenth before it valid
    funnel          names of its steps, first to last
    side_tasks      names of tasks beside the funnel
    spend           also write the money spent, a regression label
    null_rate       share of nulls in each column that may have them
    missing_labels  share of each task's labels that is null, at random; or one share per task by name
    delay_hours     besides, the last step's label is null in the last hours of train: not yet observed
    drift           how far days wander: on the last day, a task's base log-odds have walked at random by a
                    standard deviation of half of it, an item's log popularity by twice of it; 0: no drift
    launches        share of items that nobody is shown before a day of their own, spread evenly over the days
    alike           how far taste, quality and keenness, which bring about the first step, move the next ones; 0: not
    mood            standard deviation of what moves all steps of a funnel's row and stands in no column
    next_rate       which share of those who took a step take the next one, on the whole

    The same arguments give the same bytes, for the same versions of numpy and pyarrow. Files of these names
    are replaced once all five are complete; nothing is left behind where that fails.

    Returns {"rows": {split: n}, "rates": {task: share of positives among observed labels}}.
    Raises ConfigError, with all faults at once, for arguments that cannot be served or an `out`
    that cannot be written.
    """
    out, tasks = Path(out), [*funnel, *side_tasks]
    faults = _faults(out, rows, users, items, scenarios, days, funnel, side_tasks, seed, null_rate,
                     missing_labels, delay_hours, drift, launches, alike, mood, next_rate)
    if faults:
        raise ConfigError(*faults)
    held = max(1, days // 10)
    ends = {"train": days - 2 * held, "valid": days - held, "test": days}     # the first day after each split
    world = _World(seed, users, items, scenarios, days, drift, launches)
    seen = world.impressions(rows)
    truth = world.truth(seen, funnel, side_tasks, alike, mood, next_rate)
    happened = world.outcomes(truth, funnel)

    split = np.searchsorted([ends["train"], ends["valid"]], seen["day"], side="right")
    missing = missing_labels if isinstance(missing_labels, Mapping) else dict.fromkeys(tasks, missing_labels)
    unknown = {t: world.stream(f"missing {t}").random(rows) < missing.get(t, 0.0) for t in tasks}
    last = funnel[-1]
    cut = START_MS + ends["train"] * DAY_MS
    unknown[last] |= (seen["time_ms"] >= cut - delay_hours * HOUR_MS) & (split == 0)

    log = world.log(seen, null_rate)
    log |= {f"hist_{step}": world.history(seen, happened[step]) for step in (funnel[0], last)}
    log |= {t: pa.array(happened[t].astype(np.int8), mask=unknown[t]) for t in tasks}
    if spend:
        units = 1 + world.stream("units").poisson(MORE_UNITS, rows)
        log["spend"] = pa.array(np.round(happened[last] * seen["price"] * units, 2), mask=unknown[last])
        log["mean_spend"] = truth[last] * seen["price"] * (1 + MORE_UNITS)
    table = pa.table(log | {f"p_{t}": truth[t] for t in tasks})

    counts = dict(zip(ends, np.bincount(split, minlength=3).tolist()))
    starts = dict(zip(ends, np.cumsum([0, *counts.values()]).tolist()))
    _write(out, {name: table.slice(starts[name], counts[name]) for name in ends}
           | {"users": world.user_table(null_rate), "items": world.item_table(null_rate)})
    rates = {t: float(happened[t][~unknown[t]].mean()) if not unknown[t].all() else None for t in tasks}
    return {"rows": counts, "rates": rates}


def _faults(out: Path, rows: int, users: int, items: int, scenarios: int, days: int, funnel: Sequence[str],
            side_tasks: Sequence[str], seed: int, null_rate: float,
            missing_labels: float | Mapping[str, float], delay_hours: float, drift: float,
            launches: float, alike: float, mood: float, next_rate: float) -> list[str]:
    """A sentence for every argument that cannot be served."""
    faults = []

    def fault(name: str, value: Any, remedy: str) -> None:
        faults.append(f"simulate.{name}: {value!r}; {remedy}")

    def number(value: Any, kind: type = Real) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)

    for name, value, least, most in (("rows", rows, 1, MOST), ("users", users, 1, MOST), ("items", items, 1, MOST),
                                     ("scenarios", scenarios, 1, 1000), ("days", days, 3, 1000),
                                     ("seed", seed, 0, 2**63 - 1)):
        if not number(value, Integral) or not least <= value <= most:
            fault(name, value, f"give a whole number from {least} to {most}"
                  + (", so that train, valid and test have a day each" if name == "days" else ""))
    if not faults and rows < days:
        fault("rows", rows, f"that leaves days empty; give at least {days}, one for each day")
    if not number(next_rate) or not 0 < next_rate < 1:
        fault("next_rate", next_rate, "give a share above 0 and below 1")
    for name, value in (("delay_hours", delay_hours), ("drift", drift), ("alike", alike), ("mood", mood)):
        if not number(value) or value < 0:
            fault(name, value, "give 0 or a positive number")
    if not faults and delay_hours >= 24 * (days - 2 * max(1, days // 10)):
        fault("delay_hours", delay_hours, "no label of train would be left; give fewer hours, or more days")

    if any(isinstance(names, str) for names in (funnel, side_tasks)) or not funnel:
        return [*faults, f"simulate.funnel: {funnel!r} with side_tasks {side_tasks!r}; give a list of names "
                         "for each, with at least one step of the funnel"]
    tasks = [*funnel, *side_tasks]
    taken = COLUMNS | {f"hist_{s}" for s in (funnel[0], funnel[-1])} | {f"p_{t}" for t in tasks}
    for name, names in (("funnel", funnel), ("side_tasks", side_tasks)):
        for task in names:
            if not isinstance(task, str) or not task or any(c.isspace() or c in ".:|/" for c in task):
                fault(name, task, "that cannot name a task; use letters, digits, _ and -")
            elif tasks.count(task) > 1:
                fault(name, task, "two tasks have this name; name each once")
            elif task in taken:
                fault(name, task, "this is the name of another column; choose a different one")
    shares = {"missing_labels": missing_labels}
    if isinstance(missing_labels, Mapping):
        shares = {f"missing_labels.{t}": share for t, share in missing_labels.items()}
    for name, value in {"null_rate": null_rate, "launches": launches, **shares}.items():
        if not number(value) or not 0 <= value < 1:
            fault(name, value, "give a share from 0 up to, but not, 1")
        task = name.partition(".")[2]
        if task and task not in tasks:
            faults.append(f"simulate.{name}: no task '{task}'; tasks are {listing(tasks)}"
                          + did_you_mean(task, tasks))
    if out.exists() and not out.is_dir():
        fault("out", str(out), "this is a file; name a folder")
    return faults


class _World:
    """Users and items, with what nobody sees of them. An item or a user is its position in these arrays."""

    def __init__(self, seed: int, users: int, items: int, scenarios: int, days: int, drift: float, launches: float):
        self.seed, self.scenarios, self.days, self.drift = seed, scenarios, days, drift
        self.users, self.items = self._people(users), self._things(items)
        rng = self.stream("launches")
        self.launch = np.where(rng.random(items) < launches, rng.integers(1, days, items), 0)      # the first day
        self.launch[0] = 0                                         # there is always something to show

    def stream(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def _people(self, n: int) -> Columns:
        rng = self.stream("users")
        age, level = rng.integers(0, len(AGE_BANDS), n), rng.binomial(4, 0.35, n)
        city = rng.choice(len(CITIES), n, p=_zipf(len(CITIES), 1))
        taste = 0.6 * rng.normal(size=(len(AGE_BANDS), LATENT))[age] + rng.normal(size=(n, LATENT))
        taste += 0.4 * rng.normal(size=(len(CITIES), LATENT))[city]
        return {"id": _ids(rng, n), "age": age, "city": city, "level": level, "taste": _unit(taste),
                "keen": 0.5 * (level - 1.4) + 0.85 * rng.normal(size=n), "frugal": rng.normal(1, 0.4, n),
                "activity": rng.lognormal(0, 0.9, n)}

    def _things(self, n: int) -> Columns:
        rng = self.stream("items")
        category = rng.choice(len(CATEGORIES), n, p=_zipf(len(CATEGORIES), 0.6))
        brand = rng.choice(len(BRANDS), n, p=_zipf(len(BRANDS), 0.8))
        usual = rng.permuted(np.tile(np.arange(len(TAGS)), (len(CATEGORIES), 1)), axis=1)[:, :8]
        tags, many = rng.permuted(usual[category], axis=1)[:, :3], rng.integers(1, 4, n)
        worn = np.arange(3) < many[:, None]                                                     # [n, 3]
        nature = rng.normal(size=(len(CATEGORIES), LATENT))[category] + 0.7 * rng.normal(size=(n, LATENT))
        meaning = rng.normal(size=(len(TAGS), LATENT))[tags] * worn[..., None]              # [n, 3, LATENT]
        nature += 0.6 * meaning.sum(1) / np.sqrt(many)[:, None]
        quality = 0.5 * rng.normal(size=len(BRANDS))[brand] + 0.85 * rng.normal(size=n)
        dear = rng.normal(0, 0.5, len(CATEGORIES))[category] + rng.normal(0, 0.6, n)
        rank = np.empty(n, np.int64)
        rank[np.argsort(-0.4 * quality - rng.normal(size=n), kind="stable")] = np.arange(n)
        return {"id": _ids(rng, n), "category": category, "brand": brand, "tags": tags, "worn": worn,
                "nature": _unit(nature), "quality": quality, "price": np.exp(3 + dear),
                "popular": -0.8 * np.log1p(rank),
                "seller": _ids(rng, n // 4 + 1)[rng.integers(0, n // 4 + 1, n)]}

    def impressions(self, rows: int) -> Columns:
        """Who is shown what, where and when: arrays of length `rows` in time order."""
        rng, days = self.stream("times"), self.days
        day = np.concatenate([np.arange(days), rng.integers(0, days, rows - days)])     # no day without a row
        busy = 1.2 + np.sin((np.arange(24) - 13) * np.pi / 12)
        hour = rng.choice(24, rows, p=busy / busy.sum())
        time = np.sort(day * DAY_MS + hour * HOUR_MS + rng.integers(0, HOUR_MS, rows))
        count = np.arange(rows)
        time = np.maximum.accumulate(time - count) + count      # strictly increasing: "before" is never a tie
        day = np.minimum(time // DAY_MS, days - 1)

        rng = self.stream("who and where")
        comes = self.users["activity"] / self.users["activity"].sum()
        user = rng.choice(len(comes), rows, p=comes)
        scenario = rng.choice(self.scenarios, rows, p=_zipf(self.scenarios, 1.3))
        item = self._shown(day, scenario)

        by_user = np.argsort(user, kind="stable")               # each user's rows together, in time order
        first = np.diff(user[by_user], prepend=-1) != 0
        last = np.empty(rows, np.int64)
        last[by_user] = np.where(first, -1, np.roll(time[by_user], 1) + START_MS)
        price = self.items["price"][item] * self.stream("price").lognormal(0, 0.15, rows)
        return {"time_ms": START_MS + time, "last_ms": last, "day": day, "hour": time // HOUR_MS % 24,
                "user": user, "by_user": by_user, "item": item, "scenario": scenario,
                "price": np.round(price, 2),
                "badges": self.stream("badges").random((rows, len(BADGES))) < 0.2,
                "device": self.stream("device").choice(len(DEVICES), rows, p=(0.3, 0.5, 0.2))}

    def _shown(self, day: Array, scenario: Array) -> Array:
        """An item for each row, by its popularity on that day in that scenario."""
        rng, items = self.stream("shown"), len(self.items["id"])
        draw, item = rng.random(len(day)), np.empty(len(day), np.int64)
        leaning = rng.normal(0, 0.5, (self.scenarios, len(CATEGORIES)))
        popular = self.items["popular"].copy()
        group = day * self.scenarios + scenario
        order = np.argsort(group, kind="stable")
        bounds = np.searchsorted(group[order], np.arange(self.days * self.scenarios + 1))
        for g, (low, high) in enumerate(zip(bounds, bounds[1:])):
            d, s = divmod(g, self.scenarios)
            if d and s == 0:
                popular += rng.normal(0, 2 * self.drift / math.sqrt(self.days - 1), items)
            reach = np.cumsum(np.exp(popular + leaning[s, self.items["category"]]) * (self.launch <= d))
            item[order[low:high]] = np.searchsorted(reach, draw[order[low:high]] * reach[-1], side="right")
        item[item == items] = np.flatnonzero(self.launch == 0)[-1]      # draw * reach[-1] rounded to reach[-1]
        return item

    def _walk(self, rng: np.random.Generator, last: float) -> Array:
        """A random walk [days] from 0, with standard deviation `last` on the last day."""
        return np.cumsum([0, *rng.normal(0, last / math.sqrt(self.days - 1), self.days - 1)])

    def truth(self, seen: Columns, funnel: Sequence[str], side_tasks: Sequence[str], alike: float, mood: float,
              next_rate: float) -> Columns:
        """Per task, the probability on each row, over all impressions."""
        gain = self.stream("gain").lognormal(0, 0.2, self.scenarios)[seen["scenario"]]
        dear = (np.log(seen["price"] + 0.01) - 3) / 0.8 * self.users["frugal"][seen["user"]]
        pause = np.where(seen["last_ms"] < 0, DAY_MS, seen["time_ms"] - seen["last_ms"]) / HOUR_MS
        context = {"gain": gain, "dear": dear, "pause": np.log(pause + 0.1) - np.log(6)}
        truth, before = {}, np.ones(len(gain))
        unseen = mood * self.stream("mood").normal(size=len(gain))
        for k, step in enumerate(funnel):
            log_odds = unseen + self._log_odds(step, seen, context, entry=k == 0, alike=alike)
            before = truth[step] = before * _at_rate(log_odds, before, FIRST_RATE * next_rate**k)
        for task in side_tasks:
            log_odds = self._log_odds(task, seen, context, entry=True, alike=alike)
            truth[task] = _at_rate(log_odds, np.ones(len(gain)), SIDE_RATE)
        return truth

    def _log_odds(self, task: str, seen: Columns, context: Columns, entry: bool, alike: float) -> Array:
        """Of a task given the step before it, up to a constant.

        Those who got past `entry` differ less in taste and more in what they would pay.
        """
        rng = self.stream(f"task {task}")
        user, item, scenario = seen["user"], seen["item"], seen["scenario"]
        category = self.items["category"][item]
        weigh = rng.normal(1, 0.6, LATENT)
        weigh /= np.linalg.norm(weigh)
        taste, nature = self.users["taste"], self.items["nature"]
        appeal = sum(w * taste[user, k] * nature[item, k] for k, w in enumerate(weigh))
        by_taste, by_quality, by_keenness, by_price = (.95, .5, .7, -.15) if entry else (
            .4 * alike, .25 * alike, .25 * alike, -.4)
        return (by_taste * context["gain"] * appeal + by_quality * self.items["quality"][item]
                + by_keenness * self.users["keen"][user] + by_price * context["dear"]
                + rng.normal(0, 0.4, self.scenarios)[scenario]
                + rng.normal(0, 0.35, (self.scenarios, len(CATEGORIES)))[scenario, category]
                + self._walk(rng, self.drift / 2)[seen["day"]]
                + seen["badges"] @ rng.normal(0, 0.3, len(BADGES))
                + 0.15 * np.cos((seen["hour"] - rng.uniform(0, 24)) * np.pi / 12)
                + rng.normal(0, 0.1) * context["pause"])

    def outcomes(self, truth: Columns, funnel: Sequence[str]) -> Columns:
        """What happened. One draw serves the whole funnel: steps are nested, each at its own probability."""
        streams = {t: self.stream("funnel" if t in funnel else f"side {t}") for t in truth}
        return {t: streams[t].random(len(p)) < p for t, p in truth.items()}

    def log(self, seen: Columns, null_rate: float) -> dict[str, Any]:
        def null(name: str) -> Array:
            return self.stream(f"null {name}").random(len(seen["user"])) < null_rate

        places = [*SCENARIOS, *(f"place_{s}" for s in range(len(SCENARIOS), self.scenarios))]
        bits = 1 << np.arange(len(BADGES))
        sets = ["|".join(b for b, bit in zip(BADGES, bits) if code & bit) for code in range(2 * bits[-1])]
        worn = seen["badges"] @ bits
        return {"row_id": np.arange(len(worn)), "day": seen["day"].astype(np.int32),
                "time_ms": seen["time_ms"],
                "last_ms": pa.array(seen["last_ms"], mask=seen["last_ms"] < 0),
                "hour": seen["hour"].astype(np.int8), "user_id": self.users["id"][seen["user"]],
                "item_id": self.items["id"][seen["item"]], "scenario": _words(places, seen["scenario"]),
                "device": _words(DEVICES, seen["device"], null("device")),
                "price": pa.array(seen["price"], mask=null("price")),
                "badges": _words(sets, worn, null("badges")),
                "hist_shown": self.history(seen, np.ones(len(worn), bool))}

    def history(self, seen: Columns, reached: Array) -> pa.ListArray:
        """Per row, the user's last HISTORY items strictly before it, of rows that `reached`; oldest first.

        With each user's rows together in time order, a history is a range of the items reached.
        """
        by_user = seen["by_user"]
        user, hit = seen["user"][by_user], reached[by_user]
        before = np.cumsum(hit) - hit                      # hits ahead of a row, those of other users too
        own = before[np.searchsorted(user, user)]          # where the user's own hits begin
        low, high = np.empty_like(before), np.empty_like(before)
        low[by_user], high[by_user] = np.maximum(own, before - HISTORY), before
        offsets = np.concatenate([[0], np.cumsum(high - low)])
        places = np.repeat(low - offsets[:-1], high - low) + np.arange(offsets[-1])
        ids = self.items["id"][seen["item"][by_user][hit]]
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids[places]))

    def user_table(self, null_rate: float) -> pa.Table:
        rng, it, n = self.stream("user table"), self.users, len(self.users["id"])
        null = rng.random((4, n)) < null_rate
        activity = np.round(it["activity"] * rng.lognormal(0, 0.3, n), 3)
        return pa.table({"user_id": it["id"], "age_band": _words(AGE_BANDS, it["age"], null[0]),
                         "city": _words(CITIES, it["city"], null[1]),
                         "level": pa.array(it["level"], mask=null[2]),
                         "activity": pa.array(activity, mask=null[3])})

    def item_table(self, null_rate: float) -> pa.Table:
        rng, it, n = self.stream("item table"), self.items, len(self.items["id"])
        null = rng.random((4, n)) < null_rate
        offsets = pa.array(np.concatenate([[0], np.cumsum(it["worn"].sum(1))]), pa.int32())
        tags = pa.ListArray.from_arrays(offsets, _words(TAGS, it["tags"][it["worn"]]), mask=pa.array(null[2]))
        rating = np.round(3.5 + 0.5 * it["quality"] + rng.normal(0, 0.4, n), 1)
        return pa.table({"item_id": it["id"], "seller_id": it["seller"],
                         "category": _words(CATEGORIES, it["category"], null[0]),
                         "brand": _words(BRANDS, it["brand"], null[1]), "tags": tags,
                         "rating": pa.array(rating, mask=null[3])})


def _at_rate(log_odds: Array, before: Array, rate: float) -> Array:
    """sigmoid(log_odds + c), with the c that makes the mean of before * sigmoid equal to rate."""
    low, high = -40.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-(log_odds + middle)))
        low, high = (middle, high) if (before * p).mean() < rate else (low, middle)
    return p


def _unit(x: Array) -> Array:
    """Rows scaled to length sqrt(LATENT): each number has a variance of 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True) * math.sqrt(LATENT)


def _ids(rng: np.random.Generator, n: int) -> Array:
    """Distinct ids of 61 bits in no order, so near each other that as floats some would be equal."""
    return rng.permutation(2**60 + np.cumsum(rng.integers(1, 100, n)))


def _zipf(n: int, power: float) -> Array:
    weights = np.arange(1, n + 1.0) ** -power
    return weights / weights.sum()


def _words(words: Sequence[str], which: Array, null: Array | None = None) -> pa.Array:
    codes = pa.array(which.astype(np.int32), mask=null)
    return pa.DictionaryArray.from_arrays(codes, pa.array(words)).dictionary_decode()


def _write(out: Path, tables: Mapping[str, pa.Table]) -> None:
    """All tables under temporary names first, then renamed, so that no reader ever meets half a file."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".simulate-", dir=out))
        try:
            for name, table in tables.items():
                with open(staging / f"{name}.parquet", "wb") as file:
                    pq.write_table(table, file, row_group_size=ROW_GROUP, compression="zstd",
                                   write_page_checksum=True)
                    file.flush()
                    os.fsync(file.fileno())
            for name in tables:
                os.replace(staging / f"{name}.parquet", out / f"{name}.parquet")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"simulate.out: {out} cannot be written ({error.strerror or error}); make room there, "
                          "or name another folder") from error
