"""The report: whole, alone, harmless whatever the names in it, and no number in it that is not the run's."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import browse

from funnelrank.evaluate import facts, pictures, report, sections, table
from funnelrank.evaluate.measure import Scores, measure, reliability
from funnelrank.evaluate.page import FORMATS
from funnelrank.settings import Evaluate

HOSTILE = "</title><script>alert('x')</script>&\"$\\frac{$<b>--></svg>\x00\x1b\ud800 \u202e名"
VOID = {"meta", "br", "wbr", "link"}


class Page(HTMLParser):
    """Checks that every tag closes, and keeps texts and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, text):
        self.texts.append(text)


def made_run(task="click", scenario="home", text="tasks:\n  click: {}\n", n=2000):
    rng = np.random.default_rng(0)
    z = rng.normal(-1, 1, (n, 2)).astype(np.float32)
    y = (rng.random((n, 2)) < 1 / (1 + np.exp(-z))).astype(np.float32)
    log_sigmoid = lambda x: -np.logaddexp(np.float32(0), -x)
    scores = Scores([task, "money"], ["binary", "regression"], [None, None], log_sigmoid(z), log_sigmoid(-z),
                          z, y, rng.integers(0, 4, n), rng.integers(0, 50, n))
    rows = [r for s in ("valid", "test") for r in measure(s, scores, Evaluate(), [scenario, "search"])]
    events = [{"event": "step", "step": s, "loss": {task: 1 / (1 + s), "money": 0.5}, "calibrator": 0.1}
              for s in range(500)]
    events += [{"event": "evaluate", "step": s, "metrics": {f"valid/auc_{task}": 0.7 + s / 1e4, "valid/auc": None},
                "metric": "valid/auc", "value": 0.7 - s / 1e4, "better": s == 100} for s in (100, 200, 300)]
    rows += facts.label_rows({"train": {task: {"rows": n, "observed": 1500, "positives": 300},
                                        "money": {"rows": n, "observed": n, "positives": None}},
                              "test": {task: {"rows": n, "observed": 1500, "positives": 450}}})
    rows += facts.contradiction_rows({"train": {"policy": "keep", "dropped": 0, "repaired": 0, "filled": {task: 7},
                                                "edges": [{"child": scenario, "parent": task, "rows": 37,
                                                           "positives": 100, "first": f"{scenario}, row 8"}]}})
    rows += facts.feature_rows({"train": {task: {"rows": n, "nulls": 1234, "oov": 3}, "tags": {
        "rows": n, "nulls": 0, "oov": 6400, "empty": 5, "ids": 25_600, "dropped": 400, "cut": 6_000,
        "missing_keys": 9}}})
    rows += facts.bin_rows("test", reliability(scores, Evaluate())) + facts.cost_rows(1_234_567, 1_000_000, 4321.0)
    rows += [{**dict.fromkeys(table.COLUMNS), "split": "test", "task": task, "value": v, "rows": n, "view": task,
              "metric": f"gate:represent.gates:expert {i}"} for i, v in enumerate((0.25, 0.75))]
    events.append({"event": "profile", "steps": 100, "rows": 512.0, "clock": "CPU", "asked": False,
                   "ms": {"forward": 3.0, "backward": 1.0}})
    return {
        "name": task, "config": text, "metrics": rows, "events": events,
        "about": {"model": "mmoe", "reading": "joint", "seed": 7,
                  "started": "2026-01-02 03:04:05", "seconds": 754.2, "versions": {"torch": "2.13.0"},
                  "machine": {"processor": "x86_64", "device": None},
                  "data": {"train": {"files": [{"path": f"/data/{scenario}.parquet", "size": 1000}]}},
                  "training": {"steps": 500, "seconds": 61.0, "rows": 122_000}}}


@pytest.fixture
def at_once(monkeypatch):
    """Pictures take longer than all the rest of a page."""
    monkeypatch.setattr(pictures, "_draw", lambda *given: '<svg viewBox="0 0 1 1" role="img"></svg>')


def test_the_page_shows_every_part_of_a_run():
    run = made_run()
    page = Page(report.page(run))
    text = " ".join(" ".join(page.texts).split())
    for said in ("12 min 34 s", "seed 7", "model mmoe", "reading joint", "parameters 1,234,567", "torch 2.13.0",
                 "On test, the model ranks 'click' better than guessing", "multiply-adds 4,321",
                 "2,000 rows per second",
                 "of them 1,000,000 in tables", "450 · 30.00 % of rows", "expert 1", "75.0 %", "forward 3.000",
                 "processor x86_64", "/data/home.parquet",
                 "2026-01-02 03:04:05", "Training loss", "Watched: valid/auc",
                 "Kept weights: those of step 100.", "AUC on valid", "Calibrator", "95 % intervals", "1,500", "75.0 %",
                 "20.00 %", "train: 7 implied labels filled.", "home = 1 where click = 0", "37.0 %",
                 "home, row 8", "1,234", "61.7 %", "null", "not in vocabulary", "empty list", "(unseen)", "tasks:",
                 "What the metrics mean"):
        assert said in text, said
    value = table.value(run["metrics"], "test/click/auc")
    assert f"{value:.4f}" in text
    assert page.tags.count("svg") == 2 + 4 + 1 + 1
    assert "mark" in page.tags      # more than half of the rows are null


def test_ordinary_texts_of_all_scripts_are_left_alone():
    for text in ("naïve\u00a0x", "名前\u3000二", "👩\u200d🔬", "a\tb\r\nc", "<&>"):
        assert pictures.printable(text) == text
    assert pictures.printable("a\0b\ud800") == "a\ufffdb?"


def test_the_page_loads_and_runs_nothing():
    text = report.page(made_run())
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    links = [v for k, v in page.attributes if k in ("src", "href", "xlink:href", "action", "srcset", "data")]
    assert links and all(v.startswith("#") for v in links)
    assert not [k for k, _ in page.attributes if k.startswith("on")]
    assert "http" not in text and "@import" not in text
    assert len(re.findall(r"url\(([^)]*)\)", text)) == len(re.findall(r"url\(#", text)) > 0
    assert len(text.encode()) < 2_000_000


def test_hostile_names_stay_text():
    text = report.page(made_run(task=HOSTILE, scenario=HOSTILE, text=HOSTILE))
    assert text.encode()
    page = Page(text)
    assert not {"script", "b>--"} & set(page.tags)
    assert "<script" not in text and "\x00" not in text and "\x1b" not in text
    assert sum("alert('x')" in t for t in page.texts) > 10
    assert page.tags.count("title") == page.tags.count("html") == page.tags.count("body") == 1


@pytest.mark.parametrize("run", [
    {}, {k: None for k in made_run(n=50)}, {k: type(v)() for k, v in made_run(n=50).items()},
    {"events": [{"event": "step"}, {"event": "step", "step": 1, "loss": {"click": None, "buy": float("nan")}},
                {"event": "evaluate", "step": 2, "metrics": None, "metric": "valid/auc", "value": None}],
     "metrics": [*facts.feature_rows({"train": {}, "test": {"x": {}}, "valid": None}),
                 *facts.label_rows({"train": {"click": {}}, "test": None}),
                 *facts.contradiction_rows({"train": {}, "test": None}), *facts.bin_rows("test", {})],
     "about": {"seconds": None, "versions": [], "training": None, "data": [], "machine": None}}],
    ids=["no keys", "nulls", "empty", "holes"])
def test_missing_parts_are_said_and_break_nothing(run):
    page = Page(report.page(run))
    text = " ".join(page.texts)
    for said in ("Nothing was measured", "No steps were logged", "No binary task", "The data has no scenarios",
                 "No task comes after another", "No config was given", "No versions were recorded",
                 "No cost was counted",
                 "The model has no gates", "No files were recorded", "No binary label was observed"):
        assert said in text, said
    assert "nan" not in text.lower().split() and "None" not in text


def test_every_key_alone_makes_a_page(at_once):
    run = made_run(n=300)
    for key in run:
        assert len(Page(report.page({key: run[key]})).texts) > 40


def test_metrics_without_values_show_their_notes():
    nothing = Scores(["click"], ["binary"], [None], *(np.zeros((50, 1), np.float32),) * 3,
                           np.full((50, 1), np.nan), np.arange(50) % 4)
    run = {"metrics": measure("test", nothing, Evaluate(), ["home", "empty"])}
    text = " ".join(Page(report.page(run)).texts)
    assert "no observed labels" in text


def cells(text, first, nth=0):
    """The texts of the nth line that begins with `first`, without tags."""
    lines = [re.sub("<[^>]+>", "|", line) for line in re.findall(r"<tr>(<td.*?)</tr>", text)]
    return [[c for c in line.split("|") if c.strip()] for line in lines if line.split("|")[1] == first][nth]


def test_lists_show_ids_a_row_and_shares_of_elements(at_once):
    text = report.page(made_run())
    tags = [" ".join(c.split()) for c in cells(text[text.index('id="features"'):], "tags")]
    assert tags == ["tags", "2,000", "0", "6,400", "25.0 %", "5", "0.2 %", "9", "12.8 per row", "400", "1.2 %",
                    "6,000", "18.8 %"]
    assert "<mark>12.8" not in text and "<mark>6,400" not in text


def test_a_dash_points_to_its_reason_below_the_table(at_once):
    run = made_run(n=60)        # 60 rows in 4 scenarios: too few positives in each
    text = report.page(run)
    reasons = {r["note"] for r in run["metrics"] if r["metric"] == "auc" and r["task"] and r["scenario"]} - {None}
    assert reasons
    for reason in reasons:
        number = re.search(rf'<span title="{reason}"><span [^>]*>-</span><sup>(\d+)</sup></span>', text)[1]
        assert f"<sup>{number}</sup> {reason}" in text
    assert "Rows and positives of a mean over tasks are sums" in text


def test_what_the_truth_reaches_has_a_table_of_its_own():
    rows = [dict.fromkeys(table.COLUMNS) | {"split": "test", "task": "click", "metric": m, "value": 0.75, "rows": 9,
                                            "positives": 4} for m in ("auc", "auc_oracle", "violation_rate")]
    heads = [h for text in re.findall("<thead>.*?</thead>", report.page({"metrics": rows}))
             if (h := re.findall(r"<abbr[^>]*>(.*?)</abbr>", text))]
    assert heads == [["auc", "violation_<wbr>rate"], ["auc_<wbr>oracle"]]


def test_calibration_says_its_split(at_once):
    text = report.page(made_run())
    assert "On test. Each dot" in text and "On valid. Each dot" not in text


def test_a_name_of_megabytes_is_shortened(at_once):
    run = made_run(n=300, scenario="x" * 3_000_000)
    text = report.page(run)
    assert len(text) < 1_000_000 and "x" * 59 + "…</td>" in text and "x" * 200 not in text


def test_values_stand_with_half_their_interval_and_dots_with_whiskers(at_once):
    run = made_run()
    text = report.page(run)
    (row,) = [r for r in run["metrics"] if (r["split"], r["task"], r["scenario"], r["metric"]) == (
        "test", "click", None, "auc")]
    plain = re.sub("</?span[^>]*>", "", text)
    assert f"{row['value']:.4f} <small>±{(row['high'] - row['low']) / 2:.4f}</small>" in plain
    assert f"95 %: {row['low']:.4f} to {row['high']:.4f}" in text
    assert pictures._interval(row) == (row["low"], row["high"])
    assert pictures._interval(row | {"low": None, "high": None}) == (row["value"], row["value"])
    drawn = pictures.ranking_by_task(run["metrics"], "test")
    assert [p.title for p in drawn] == ["AUC by task", "GAUC by task"]


def test_many_scenarios_are_cut_and_said():
    names = [f"s{i}" for i in range(300)]
    rows = [dict.fromkeys(table.COLUMNS) | {"split": "test", "task": "click", "scenario": s, "metric": "auc",
                                             "value": 0.5 + i / 1000, "rows": i + 1, "positives": i}
            for i, s in enumerate([None, *names])]
    text = report.page({"metrics": rows})
    assert f"The {pictures.MOST_SCENARIOS} largest of 300 scenarios." in text
    assert f"{301 - sections.MOST_LINES} more lines are in metrics.json" in text
    assert "s299 · 301" in text


def test_long_curves_keep_their_mean_and_lose_points():
    x, y = np.arange(10_007.0), np.sin(np.arange(10_007.0))
    thin_x, thin_y = pictures._thinned(x, y)
    assert len(thin_x) == len(thin_y) == pictures.MOST_POINTS
    assert np.all(np.diff(thin_x) > 0) and thin_x[0] < 40 and thin_x[-1] > 9_960
    assert thin_y.mean() == pytest.approx(y.mean(), abs=0.01)


@pytest.mark.parametrize("name, task", [
    ("valid/auc_click", "click"), ("valid/click/auc", "click"), ("valid/auc", "mean"), ("valid/auc_macro", "mean"),
    ("auc_a_b", "a_b"), ("valid/gauc_click", None), ("valid/pr_auc_click", None), ("valid/auc_oracle_click", None),
    ("valid/logloss_click", None)])
def test_aucs_are_found_under_their_names(name, task):
    assert pictures._auc_of(name) == task


def test_pictures_take_the_pages_colour_and_share_no_ids():
    drawn = pictures.learning_curves(made_run()["events"])
    ids = [set(re.findall(r' id="([^"]+)"', p.svg)) for p in drawn]
    assert all(ids) and not set.intersection(*ids)
    for p in drawn:
        assert "currentColor" in p.svg and pictures.INK not in p.svg and "font-family" not in p.svg
        assert set(re.findall(r"#([\w]+)\)", p.svg)) <= set(re.findall(r' id="([^"]+)"', p.svg))


def test_the_same_run_makes_the_same_page():
    assert report.page(made_run(n=200)) == report.page(made_run(n=200))


def test_matplotlib_waits_for_the_first_picture():
    code = "import sys, funnelrank.evaluate.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


class Traced(HTMLParser):
    """(where a number says it is from, its text) of every text; elements of pictures and of the config are left out."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.found = [], []
        self.feed(text[text.index("<main>"):])

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            said = dict(attributes)
            self.stack.append((tag, said.get("data-of"), said.get("data-from")))

    def handle_endtag(self, tag):
        if self.stack:                       # the page's own frame is not looked at
            self.stack.pop()

    def handle_data(self, text):
        tags = [tag for tag, _, _ in self.stack]
        if not {"svg", "pre", "figcaption", "th", "sup", "h2", "h3", "dd"} & set(tags):
            of = next((o for _, o, _ in reversed(self.stack) if o), None)
            file = next((f for _, _, f in reversed(self.stack) if f), None)
            self.found.append((of, file, text))


def test_every_number_of_the_page_is_that_of_its_row_in_metrics_json(at_once):
    run = made_run(task="click", scenario="home")
    rows = json.loads(table.to_json(run["metrics"]))                 # as the file has them
    found = Traced(report.page(run)).found
    traced = [(of, text) for of, _, text in found if of]
    assert len(traced) > 300
    for of, text in traced:
        at, field, how = of.split(":")
        row = rows[int(at)]
        value = row[field]
        assert FORMATS[how](row, field) in (text, text.replace("<", "&lt;")), of
        if how == "figure" and value is not None and abs(value) < 100:
            assert float(text) == pytest.approx(value, abs=6e-5)
        if how in ("percent", "rate") and value is not None and "<" not in text:
            assert float(text.split()[0]) == pytest.approx(100 * value, abs=0.051)
        if how == "integer" and value is not None:
            assert int(text.replace(",", "")) == round(value)
    allowed = re.compile(r"95 %|\b0\.5\b|50|of 100 pairs|1-9|10-99|100\+|expert \d|= [01]|within \.1|\.25|\.1")
    for of, file, text in found:
        if not of and not file:
            assert not re.search(r"\d", allowed.sub("", text)), text
    assert {file for _, file, _ in found if file} <= {"events.jsonl", "artefact/manifest.json", "metrics.json"}


def test_reliability_is_drawn_from_metrics_json():
    run = made_run()
    b = report._bins(run["metrics"])["click"]
    assert len(b["p"]) == Evaluate().bins and sum(b["count"]) == 2000
    assert b["y"] == [r["value"] for r in run["metrics"] if r["metric"].startswith("bin:")]


def test_the_verdict_names_what_deserves_a_look():
    row = lambda **said: dict.fromkeys(table.COLUMNS) | {"split": "test", "rows": 900, "positives": 90} | said
    rows = [row(task="click", metric="auc", value=0.7, low=0.65, high=0.75),
            row(task="click", metric="pcoc", value=1.5, low=1.3, high=1.7),
            row(task="buy", metric="auc", value=0.52, low=0.45, high=0.59),
            row(task="like", metric="auc", value=None, note="too few positives", positives=3),
            row(task="buy", metric="violation_rate", value=0.2),
            row(task="click", scenario="mail", metric="auc", value=0.5, low=0.4, high=0.6),
            row(metric="psi:price", value=0.8, noise=0.01)]
    text = report.markdown({"name": "shop", "metrics": rows, "events": [
        {"event": "warning", "step": 3, "said": "units are zero"}]})
    for said in ("ranks 'click' better than guessing, and is not shown to for 'buy' and 'like'",
                 "need a look for 'click'", "predicted 1.50 times as often as it happened, more than chance explains",
                 "in 70 of 100 pairs (95 %: 65 to 75)", "Guessing, which gives 50, is not ruled out",
                 "like: cannot be judged, too few positives (3 positives)", "on 20.00 % of rows",
                 "click in scenario mail: AUC 0.5000, below its 0.7000", "price moved",
                 "While training: units are zero",
                 "| click | 900 | 90 | 0.7000 +-0.0500 |"):
        assert said in text, said
    assert "calibrate.method mends that" in text and "- - " not in text
    text = report.markdown({"name": "shop", "metrics": rows, "events": [{"event": "calibrate"}]})
    assert "mends that" not in text and "its calibrator does not know what changed" in text


def test_names_cannot_break_the_markdown():
    text = report.markdown(made_run(task="a|b\n# c", n=300))
    assert "\n# c" not in text and "a\\|b # c" in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium on the PATH (apt-get install chromium)")
def test_a_browser_shows_it_without_a_fault_at_any_width_and_prints_it(tmp_path):
    (tmp_path / "report.html").write_text(report.page(made_run(n=600)))
    said = browse(tmp_path / "report.html", tmp_path)
    assert said["errors"] == [] and said["pictures"] > 5 and said["empty"] == 0
    for width, page in said["widths"].items():
        assert page <= int(width), said["widths"]
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and len(printed) > 20_000
