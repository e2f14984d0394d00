"""An artefact records what is needed to train it again to the same bits, and what differs is said."""

import pytest
from test_resume import config, log  # noqa: F401

from funnelrank import ConfigError, Ranker, again, api, cli

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(log, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("runs") / "run"
    api.train(config(log, out))
    return out


def test_an_artefact_records_versions_machine_data_and_encoder(folder):
    about = Ranker.load(folder).about
    assert {"torch", "numpy", "python", "code"} <= set(about["versions"]) and about["machine"]["threads"] == 1
    assert set(about["data"]) == {"train", "valid", "test"} and len(about["encoder"]) == 64
    assert about["data"]["train"]["files"][0]["size"] > 0 and about["resumed"] == []


def test_the_same_machine_gives_the_same_bits(folder, capsys):
    before = (folder / "artefact/manifest.json").read_bytes()
    assert cli.main(["reproduce", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "reproduced" in said and "differs" not in said and "not as the first time" not in said
    assert (folder / "artefact/manifest.json").read_bytes() == before
    with pytest.raises(ConfigError, match="holds the run to compare with"):
        again.reproduce(folder, folder)


def test_what_differs_is_named(folder, tmp_path, monkeypatch, capsys):
    ranker = Ranker.load(folder)
    ranker.about["versions"] = {**ranker.about["versions"], "torch": "1.0"}
    bias = ranker.model.slots.predict.linear.bias
    bias.data += 0.5
    row = next(r for r in ranker.rows if r["value"] is not None)
    row["value"] += 1
    ranker.save(tmp_path / "changed")
    found = again.reproduce(tmp_path / "changed")
    assert [c.split(" was ")[0] for c in found.circumstances] == ["versions.torch"]
    assert found.weights == {"slots.predict.linear.bias": pytest.approx(0.5)} and len(found.metrics) == 1
    assert cli.main(["reproduce", str(tmp_path / "changed")]) == 2
    assert "not reproduced; 1 of" in capsys.readouterr().err
