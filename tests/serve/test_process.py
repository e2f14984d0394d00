"""The whole process, as an operator has it: it stops when all is answered, and takes up new versions under load."""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from serving import train
from test_serve import one_user, rank_body

from funnelrank import Ranker, cli


@pytest.fixture(scope="module")
def runs(tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("runs")
    return [train(folder / f"v{i}", seed=i).folder for i in (1, 2)]


@pytest.fixture
def process(runs, tmp_path):
    live = tmp_path / "shop"
    shutil.copytree(runs[0] / "artefact", live)
    started = subprocess.Popen([sys.executable, "-m", "funnelrank", "serve", f"shop={live}", "--port", "0"],
                               stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(started.stdout.readline())
        yield started, int(ready["http"].rsplit(":", 1)[1]), live
    finally:
        started.kill()
        started.wait()


def ask(connection, body):
    connection.request("POST", "/v2/models/shop/rank", body)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def test_reloads_under_load_lose_nothing_and_sigterm_answers_what_came(runs, process):
    started, port, live = process
    table = one_user(20, 3)
    body = json.dumps(rank_body(table))
    right = [Ranker.load(run).predict(table)["buy"].to_pylist() for run in runs]
    stop, told, answers, broken = threading.Event(), threading.Event(), [], []

    def load():
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                answers.append(ask(connection, body))
            except ConnectionRefusedError:
                return                                       # it no longer listens
            except OSError as error:
                broken.append((told.is_set(), error))
            finally:
                connection.close()

    threads = [threading.Thread(target=load) for _ in range(3)]
    for t in threads:
        t.start()
    admin = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    results = []
    for k in range(6):
        shutil.rmtree(live)
        shutil.copytree(runs[(k + 1) % 2] / "artefact", live)
        if k % 3 == 2:                                       # cut off
            model = live / "model.safetensors"
            model.write_bytes(model.read_bytes()[:-8])
        admin.request("POST", "/v2/repository/models/shop/load")
        results.append(json.loads(admin.getresponse().read()))
    assert [r["result"] for r in results] == ["loaded", "loaded", "refused"] * 2
    assert "was cut off or changed" in results[2]["error"]
    told.set()
    started.send_signal(signal.SIGTERM)
    assert started.wait(30) == 0
    stop.set()
    for t in threads:
        t.join()
    # who connects while it stops to listen may wait in the system's queue, never taken, when that is closed
    assert all(late and isinstance(error, ConnectionResetError) for late, error in broken), broken
    assert len(answers) > 10 and {status for status, _ in answers} == {200}
    for _, said in answers:
        assert any(said["outputs"]["buy"] == pytest.approx(buy, abs=1e-6) for buy in right)
    lines = [json.loads(line) for line in started.stdout]
    assert lines[-1]["event"] == "stopped" and sum(line["event"] == "request" for line in lines) == len(answers)


def test_check_loads_verifies_and_ends(runs, capsys):
    assert cli.main(["serve", str(runs[0]), "--check"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("v1: good. Version ") and "outputs click, buy, buy|click" in said


@pytest.mark.parametrize("tokens, said", [
    (["a=x", "a=y"], "the name 'a' is already that of x"),
    (["b d"], "'b d' cannot be a model's name"),
    (["nowhere"], "there is no such folder"),
    (["x", "--tls-cert", "c.pem"], "a certificate and its key go together"),
    (["x", "--check", "--token-file", "no.txt"], "--token-file: no.txt cannot be read"),
])
def test_what_cannot_be_served_is_a_sentence(tokens, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", *tokens]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_a_sentence(runs, capsys):
    import socket
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(runs[0]), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err


def test_who_is_connected_when_it_is_told_to_stop_may_still_ask(process):
    started, port, _ = process
    body = json.dumps(rank_body(one_user(20, 3)))
    new, kept = (http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2))
    new.connect()
    assert ask(kept, body)[0] == 200
    started.send_signal(signal.SIGTERM)
    while json.loads(started.stdout.readline())["event"] != "stopping":
        pass
    for connection in (new, kept):
        time.sleep(0.3)
        assert ask(connection, body)[0] == 200
    assert new.sock is kept.sock is None                  # both were told that it was the last answer
    assert started.wait(30) == 0
