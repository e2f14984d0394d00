"""A folder that `export --to serve` wrote answers as its artefact does, and torch is not there."""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client
from serving import Server, body_of, rows, tensors, train
from test_serve import one_user, rank_body, same, wanted

from funnelrank import ArtefactError, ConfigError, cli
from funnelrank.artefact import SERVED
from funnelrank.data.encoded import List
from funnelrank.sealed import write_sealed
from funnelrank.serve.onnx_engine import padded
from funnelrank.serve.protocol import Limits
from funnelrank.serve.requests import from_rank
from funnelrank.serve.servable import Servable


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
    return train(tmp_path_factory.mktemp("run") / "shop").folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("served") / "shop"
    assert cli.main(["export", str(run), "--to", "serve", "--out", str(out), "--verify"]) == 0
    return out


@pytest.fixture(scope="module")
def server(folder):
    with Server(Servable.load(folder, "shop")) as running:
        yield running


def test_rows_get_what_predict_says_whichever_way_they_come(server, run):
    table, artefact = rows(37, 5), Servable.load(run, "shop")
    assert server.ask("GET", "/v2/models/shop")[1]["inputs"] == artefact.metadata()["inputs"]
    status, said, _ = server.ask("POST", "/v2/models/shop/infer", body_of(tensors(table, artefact.columns)))
    assert status == 200
    same({o["name"]: o["data"] for o in said["outputs"]}, wanted(run, table), atol=1e-6)
    table = one_user(20, 3)
    status, said, _ = server.ask("POST", "/v2/models/shop/rank", rank_body(table))
    assert status == 200
    same(said["outputs"], wanted(run, table), atol=1e-6)


def test_users_who_are_scored_together_get_what_each_gets_alone(folder):
    shop = Servable.load(folder, "shop")
    asked = [from_rank(rank_body(one_user(n, n)), shop.columns, shop.outputs, Limits())[0] for n in (70, 1, 90, 3)]
    alone = [shop.score([one])[0].outputs for one in asked]
    for some in ([0, 2], [1, 3], [0, 1, 2, 3]):              # a run for each user, one for all, a run for each
        for k, found in zip(some, shop.score([asked[k] for k in some]), strict=True):
            same(found.outputs, alone[k], atol=1e-6)


def test_what_reads_more_than_flat_is_served_by_its_whole_graph(tmp_path):
    run, out = train(tmp_path / "fm", model={"name": "fm"}).folder, tmp_path / "served"
    assert cli.main(["export", str(run), "--to", "serve", "--out", str(out), "--verify"]) == 0
    assert not (out / "tables").exists()
    table, shop = one_user(20, 3), Servable.load(out, "shop")
    same(shop.score([from_rank(rank_body(table), shop.columns, shop.outputs, Limits())[0]])[0].outputs,
         wanted(run, table), atol=1e-6)


def test_it_starts_without_torch_and_writes_nothing_at_home(folder, tmp_path):
    code = f"""
import sys
from pathlib import Path
from funnelrank.serve import grpc_server, server
server.load({{"shop": Path({str(folder)!r})}})
slow = {{"torch", "matplotlib", "scipy"}} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())                  # ONNX Runtime keeps an id there, where it may


def test_what_is_cut_off_or_is_no_graph_of_this_encoder_is_refused(folder, tmp_path):
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.onnx.data").write_bytes((cut / "model.onnx.data").read_bytes()[:-8])
    with pytest.raises(ArtefactError, match="'model.onnx.data' has .* it was cut off or changed"):
        Servable.load(cut)

    def sealed(name, **changed):
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        del files["manifest.json"]
        write_sealed(tmp_path / name, SERVED, files | changed, {})
        return tmp_path / name
    with pytest.raises(ArtefactError, match="ONNX Runtime .* does not take this graph"):
        Servable.load(sealed("noise", **{"model.onnx": b"\x08\x0a no graph"}))
    said = json.loads((folder / "inputs.json").read_bytes())
    said["inputs"] = said["inputs"][1:]
    with pytest.raises(ArtefactError, match="are not those that inputs.json and the encoder name"):
        Servable.load(sealed("fewer", **{"inputs.json": json.dumps(said).encode()}))


def test_a_new_version_replaces_the_old_one_and_nothing_else(folder, run, tmp_path, monkeypatch, capsys):
    from funnelrank import export as module
    wrote = []
    monkeypatch.setattr(module, "_write_onnx", lambda scorer, place, name: wrote.append(
        [shutil.copy(folder / f, place / f) for f in ("model.onnx", "model.onnx.data")]))      # exported once already
    live = shutil.copytree(folder, tmp_path / "live")
    before = Servable.load(live).version
    (live / "golden" / "rows.arrow").unlink()
    assert cli.main(["export", str(run), "--to", "serve", "--out", str(live)]) == 0
    assert len(wrote) == 1 and Servable.load(live).version == before                 # the same content
    other = tmp_path / "mine"
    other.mkdir()
    (other / "letter.txt").write_text("x")
    assert cli.main(["export", str(run), "--to", "serve", "--out", str(other)]) == 2
    assert "is in the way and not replaced" in capsys.readouterr().err and (other / "letter.txt").read_text() == "x"


def test_without_its_library_it_is_a_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs the library 'onnxruntime'.*funnelrank\[serve\]"):
        Servable.load(Path(folder))


def test_a_steady_load_leaves_memory_and_threads_as_they_were(server):
    """Requests at 80 % of what one client can ask for; FUNNELRANK_SOAK seconds of them."""
    body, statuses = json.dumps(rank_body(one_user(50, 3))), []
    resident = lambda: int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024     # MB
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def ask(seconds: float, share: float) -> None:
        until = time.monotonic() + seconds
        while (clock := time.monotonic()) < until:
            connection.request("POST", "/v2/models/shop/rank", body)
            reply = connection.getresponse()
            reply.read()
            statuses.append(reply.status)
            time.sleep((time.monotonic() - clock) * (1 / share - 1))

    ask(1, 1.0)
    before, threads = resident(), threading.active_count()
    ask(float(os.environ.get("FUNNELRANK_SOAK", 4)), 0.8)
    connection.close()
    assert set(statuses) == {200} and threading.active_count() == threads
    assert resident() < before + 16, (before, len(statuses))


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days",
                    "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                   capture_output=True)
    return cert, key


def test_over_tls_requests_are_answered_and_in_the_clear_they_are_not(folder, certificate):
    cert, key = certificate
    started = subprocess.Popen([sys.executable, "-m", "funnelrank", "serve", f"shop={folder}", "--port", "0",
                                "--grpc-port", "0", "--tls-cert", cert, "--tls-key", key], stdout=subprocess.PIPE,
                               text=True)
    try:
        said = json.loads(started.stdout.readline())
        assert said["http"].startswith("https://127.0.0.1:")
        port, body = int(said["http"].rsplit(":", 1)[1]), json.dumps(rank_body(one_user(3, 1)))
        trusts = ssl.create_default_context(cafile=cert)
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusts, timeout=30)
        connection.request("POST", "/v2/models/shop/rank", body)
        reply = connection.getresponse()
        assert reply.status == 200 and len(json.loads(reply.read())["outputs"]["buy"]) == 3
        with client.InferenceServerClient(said["grpc"], ssl=True, root_certificates=str(cert)) as c:
            assert c.is_server_ready() and c.is_model_ready("shop")
        stranger = http.client.HTTPSConnection("127.0.0.1", port, context=ssl.create_default_context(), timeout=30)
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.request("GET", "/v2/health/live")
        clear = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with pytest.raises((http.client.HTTPException, OSError)):
            clear.request("GET", "/v2/health/live")
            clear.getresponse()
    finally:
        started.terminate()
        assert started.wait(30) == 0


def test_a_key_of_another_certificate_is_a_sentence(folder, certificate, tmp_path, capsys):
    key = tmp_path / "other.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    words = ["serve", folder, "--port", "0", "--tls-cert", certificate[0], "--tls-key", key]
    assert cli.main([str(w) for w in words]) == 2
    assert "--tls-cert: the certificate and its key cannot be used" in capsys.readouterr().err


def test_lists_and_weights_stand_side_by_side():
    listed = List(np.array([5, 7, 2], np.int32), np.array([0, 2, 2, 3]), np.array([.5, 1, .25], np.float32))
    assert padded(listed, listed.values, np.int64).tolist() == [[5, 7], [0, 0], [2, 0]]
    assert padded(listed, listed.weights, np.float32).tolist() == [[.5, 1], [0, 0], [.25, 0]]
    assert padded(List(np.zeros(0, np.int32), np.zeros(2, np.int64), None), np.zeros(0), np.int64).tolist() == [[0]]
