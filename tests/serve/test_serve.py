"""Rows through the server are rows through `predict`, whichever way they come in; and what cannot be is a sentence."""

import json
import socket
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import tritonclient.http as client
from serving import Server, body_of, rows, tensors, train

from funnelrank import ArtefactError, Ranker
from funnelrank.data.golden import Golden
from funnelrank.serve import app, connection
from funnelrank.serve.batching import Batcher
from funnelrank.serve.connection import Connection
from funnelrank.serve.protocol import Limits, Tensor
from funnelrank.serve.requests import Rows, from_rank, from_tensors
from funnelrank.serve.servable import Servable
from funnelrank.serve.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
    return train(tmp_path_factory.mktemp("run") / "shop").folder


@pytest.fixture(scope="module")
def shop(run):
    return Servable.load(run, "shop")


@pytest.fixture(scope="module")
def server(shop):
    with Server(shop, limits=Limits(body=1 << 20, rows=600, length=50, text=40)) as running:
        yield running


def wanted(run, table):
    said = Ranker.load(run).predict(table)
    return {name: said[name].to_numpy() for name in said.column_names}


def same(found, expected, atol=0.0):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(np.asarray(found[name], np.float32), expected[name], rtol=0, atol=atol)


# ---- in three ways

@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_what_predict_says_to_the_bit(server, shop, run, binary):
    table = rows(37, 5)
    with client.InferenceServerClient(f"127.0.0.1:{server.port}") as c:
        assert c.is_server_live() and c.is_server_ready() and c.is_model_ready("shop")
        said = c.get_model_metadata("shop")
        assert [o["name"] for o in said["outputs"]] == ["click", "buy", "buy|click"]
        assert {i["name"]: (i["datatype"], i["shape"]) for i in said["inputs"]}["tags"] == ("BYTES", [-1, -1])
        inputs = []
        for name, (datatype, array) in tensors(table, shop.columns).items():
            inputs.append(client.InferInput(name, array.shape, datatype))
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
        outputs = [client.InferRequestedOutput(o, binary_data=binary) for o in shop.outputs]
        result = c.infer("shop", inputs, outputs=outputs, request_id="7")
        same({o: result.as_numpy(o) for o in shop.outputs}, wanted(run, table))
        assert result.get_response()["id"] == "7" and result.get_response()["model_version"] == shop.version


def test_plain_json_and_chosen_outputs(server, shop, run):
    table = rows(5, 6)
    body = {**body_of(tensors(table, shop.columns)), "outputs": [{"name": "buy"}]}
    status, said, _ = server.ask("POST", f"/v2/models/shop/versions/{shop.version}/infer", body)
    assert status == 200 and [o["name"] for o in said["outputs"]] == ["buy"]
    same({"buy": said["outputs"][0]["data"]}, {"buy": wanted(run, table)["buy"]})


def one_user(n, seed):
    """Candidates of one user, as the log would have them."""
    table = rows(n, seed)
    first = pa.array(np.zeros(n, np.int64))
    for name in ("user", "shown", "tab", "when"):
        table = table.set_column(table.column_names.index(name), name, table[name].take(first))
    return table


def rank_body(table, user=("user", "shown", "tab", "when")):
    said = {c: table[c].cast(pa.int64()).to_pylist() if c in ("when", "since") else table[c].to_pylist()
            for c in table.column_names if c not in ("click", "buy")}
    return {"user": {c: said[c][0] for c in user}, "candidates": {c: v for c, v in said.items() if c not in user}}


def test_rank_scores_one_users_candidates(server, run):
    table = one_user(50, 8)
    status, said, _ = server.ask("POST", "/v2/models/shop/rank", rank_body(table))
    assert status == 200 and said["order"] == list(range(50))
    same(said["outputs"], wanted(run, table), 1e-6)


def test_candidates_may_be_objects_and_times_texts(server, run):
    table = one_user(3, 9)
    body = rank_body(table)
    names = list(body["candidates"])
    body["candidates"] = [dict(zip(names, values)) for values in zip(*body["candidates"].values())]
    for one, when in zip(body["candidates"], table["since"].to_pylist()):
        one["since"] = when.isoformat()
    status, said, _ = server.ask("POST", "/v2/models/shop/rank", body)
    assert status == 200, said
    same(said["outputs"], wanted(run, table), 1e-6)


def test_one_value_for_all_rows_is_a_first_dimension_of_one(server, shop, run):
    table = one_user(20, 10)
    sent = tensors(table, shop.columns)
    for name in ("user", "shown", "shown.length", "tab", "when"):
        sent[name] = (sent[name][0], sent[name][1][:1])
    status, said, _ = server.ask("POST", "/v2/models/shop/infer", body_of(sent))
    assert status == 200, said
    same({o["name"]: o["data"] for o in said["outputs"]}, wanted(run, table), 1e-6)


def test_a_users_columns_are_encoded_once(shop, monkeypatch):
    table, seen = one_user(20, 11), []
    encode = shop.encoder.encode
    monkeypatch.setattr(shop.encoder, "encode", lambda t, *a, **k: seen.append((len(t), t.column_names)) or encode(
        t, *a, **k))
    asked, _ = from_rank(rank_body(table), shop.columns, shop.outputs, Limits())
    shop.score([asked])
    assert sorted(n for n, _ in seen) == [1, 20]
    assert set(next(c for n, c in seen if n == 1)) == {"user", "shown"}


def test_sort_is_a_sum_or_a_product_of_outputs(server):
    table = one_user(30, 12)
    for sort, value in (({"sum": {"click": 1, "buy": 5}}, lambda o: o["click"] + 5 * o["buy"]),
                        ({"product": {"click": 0.5, "buy|click": 2}}, lambda o: o["click"]**0.5 * o["buy|click"]**2)):
        _, said, _ = server.ask("POST", "/v2/models/shop/rank", {**rank_body(table), "sort": sort, "top": 7})
        _, whole, _ = server.ask("POST", "/v2/models/shop/rank", rank_body(table))
        every = value({k: np.array(v) for k, v in whole["outputs"].items()})
        np.testing.assert_allclose(said["sort"], np.sort(every)[::-1][:7], rtol=1e-5)
        np.testing.assert_allclose(every[said["order"]], said["sort"], rtol=1e-5)
        np.testing.assert_allclose(value({k: np.array(v) for k, v in said["outputs"].items()}), said["sort"], rtol=1e-5)


def test_nulls_are_said_and_counted(server, run):
    table = one_user(4, 13)
    table = table.set_column(3, "price", pa.array([1.0, None, 2.0, None]))
    table = table.set_column(1, "item", pa.array([None, 3, 999, 4]))
    status, said, _ = server.ask("POST", "/v2/models/shop/rank", {**rank_body(table), "counts": True})
    assert status == 200 and said["counts"]["price"]["nulls"] == 2
    assert said["counts"]["item"] == {"rows": 4, "nulls": 1, "oov": 1}
    same(said["outputs"], wanted(run, table), 1e-6)


def test_null_masks_do_the_same_for_tensors(server, shop, run):
    table = rows(4, 14)
    sent = tensors(table, shop.columns)
    sent["item.null"] = ("BOOL", np.array([True, False, False, True]))
    sent["tags.null"] = ("BOOL", np.array([False, True, False, False]))
    status, said, _ = server.ask("POST", "/v2/models/shop/infer", body_of(sent))
    assert status == 200, said
    item = [None if i in (0, 3) else v for i, v in enumerate(table["item"].to_pylist())]
    tags = [None if i == 1 else v for i, v in enumerate(table["tags"].to_pylist())]
    table = table.set_column(1, "item", pa.array(item)).set_column(
        table.column_names.index("tags"), "tags", pa.array(tags, pa.large_list(pa.large_string())))
    same({o["name"]: o["data"] for o in said["outputs"]}, wanted(run, table))


# ---- together

def test_however_requests_are_batched_they_say_the_same(shop, run):
    tables = [rows(int(n), 20 + i) for i, n in enumerate((1, 7, 30, 2, 11, 5))] + [one_user(9, 30), one_user(4, 31)]
    bodies = [(f"/v2/models/shop/{'rank' if i > 5 else 'infer'}", rank_body(t) if i > 5 else body_of(
        tensors(t, shop.columns))) for i, t in enumerate(tables)]
    found = [None] * len(bodies)
    with Server(shop, wait=0.3) as server:
        def ask(i):
            found[i] = server.ask("POST", *bodies[i])
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert max(line["together"] for line in server.log) > 30         # some went through the model together
    for i, (status, said, _) in enumerate(found):
        assert status == 200, said
        outputs = said["outputs"] if i > 5 else {o["name"]: o["data"] for o in said["outputs"]}
        same(outputs, wanted(run, tables[i]), 1e-6)


def test_a_bad_request_of_a_batch_is_that_ones_error(shop):

    def asked(table):
        sent = {n: Tensor(n, d, a.shape, a if d != "BYTES" else a.ravel().tolist())
                for n, (d, a) in tensors(table, shop.columns).items()}
        return from_tensors(sent, shop.columns, Limits())
    good, bad = asked(rows(3, 1)), asked(rows(2, 2))
    bad = Rows(2, {}, {**bad.each, "price": pa.array(["x", "y"])})
    batcher = Batcher(shop, wait=0.2)
    futures = [batcher.submit(shop, one, time.perf_counter() + 9) for one in (good, bad, good)]
    results = [f.exception(timeout=9) for f in futures]
    batcher.close()
    assert results[0] is None and results[2] is None and results[1] is not None


def test_a_full_queue_is_503_and_says_when_to_come_again(shop, monkeypatch):
    table = rows(8, 40)
    slow = threading.Event()
    score = shop.score
    monkeypatch.setattr(shop, "score", lambda *a: slow.wait(20) and score(*a))
    with Server(shop, queue_rows=10) as server:
        body, found = body_of(tensors(table, shop.columns)), []
        threads = [threading.Thread(target=lambda: found.append(server.ask("POST", "/v2/models/shop/infer", body)))
                   for _ in range(6)]
        for t in threads:
            t.start()
            time.sleep(0.05)
        slow.set()
        for t in threads:
            t.join()
    refused = [f for f in found if f[0] == 503]
    assert refused and all(f[2]["retry-after"] == "1" and "try again" in f[1]["error"] for f in refused)
    assert [f[0] for f in found].count(200) == 6 - len(refused)


def test_a_deadline_that_passes_is_504_and_nothing_is_computed(shop, monkeypatch):
    slow, scored = threading.Event(), []
    score = shop.score
    monkeypatch.setattr(shop, "score", lambda asked, told: slow.wait(20) and (
        scored.append(sum(r.rows for r in asked)) or score(asked, told)))
    with Server(shop) as server:
        first, late = (body_of(tensors(rows(n, 41), shop.columns)) for n in (2, 3))
        late["parameters"] = {"timeout": 50_000}                 # microseconds
        thread = threading.Thread(target=lambda: server.ask("POST", "/v2/models/shop/infer", first))
        thread.start()
        time.sleep(0.1)
        status, said, _ = server.ask("POST", "/v2/models/shop/infer", late)
        slow.set()
        thread.join()
    assert status == 504 and "deadline" in said["error"] and scored == [2]


# ---- what cannot be

GOOD = {"name": "price", "datatype": "FP64", "shape": [2], "data": [1.0, 2.0]}


@pytest.mark.parametrize("change, status, said", [
    ({"shape": [3]}, 400, "input 'price': 2 values; its shape [3] has 3"),
    ({"shape": [-5, 8]}, 400, "input 'price': shape [-5, 8]"),
    ({"shape": [2, 1]}, 400, "input 'price': shape [2, 1]; the model says [-1]"),
    ({"shape": [601], "data": [1.0] * 601}, 413, "601 rows; a request has at most 600"),
    ({"shape": [10**30]}, 413, "a request has at most 600"),
    ({"shape": 2}, 400, "shape 2"),
    ({"datatype": "BYTES", "data": ["a", "b"]}, 400, "input 'price': datatype BYTES; the model says FP64"),
    ({"datatype": "FLOAT"}, 400, 'input \'price\': datatype "FLOAT"'),
    ({"data": ["a", 1]}, 400, "input 'price': holds str 'a'; the model says FP64"),
    ({"data": [1e400, 1]}, 400, "is no number of JSON"),
    ({"data": [[1.0], [2.0, 3.0]]}, 400, "input 'price': holds list"),
    ({"data": None}, 400, "data is no list"),
    ({"name": "prise"}, 400, "input 'prise': the model has no such input (did you mean 'price'?)"),
    ({"parameters": {"binary_data_size": 16}}, 400, "both data and binary_data_size"),
])
def test_a_tensor_that_is_not_what_the_model_says(server, shop, change, status, said):
    body = body_of(tensors(rows(2, 3), shop.columns))
    body["inputs"] = [one for one in body["inputs"] if one["name"] != "price"] + [{**GOOD, **change}]
    text = json.dumps(body).replace("Infinity", "1e400")
    found, answer, _ = server.ask("POST", "/v2/models/shop/infer", text.encode())
    assert (found, said in answer["error"]) == (status, True), answer


@pytest.mark.parametrize("method, path, body, status, said", [
    ("GET", "/v2/models/shpo", None, 404, "no model 'shpo'; models are 'shop' (did you mean 'shop'?)"),
    ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", None, 404, "no model '..'"),
    ("GET", "/v2/models/shop/versions/9", None, 404, "no version '9'"),
    ("GET", "/etc/passwd", None, 404, "no such path"),
    ("DELETE", "/v2/models/shop", None, 405, "this path is for GET, HEAD"),
    ("GET", "/v2/models/shop/infer", None, 405, "this path is for POST"),
    ("POST", "/v2/models/shop/infer", b"", 400, "not JSON"),
    ("POST", "/v2/models/shop/infer", b"[" * 200_000, 400, "too deeply nested"),
    ("POST", "/v2/models/shop/infer", b'{"inputs": [{"name": "\xff"}]}', 400, "not UTF-8 (byte 22)"),
    ("POST", "/v2/models/shop/infer", b'{"inputs": [NaN]}', 400, "NaN is no number of JSON"),
    ("POST", "/v2/models/shop/infer", b'{"id": ' + b"9" * 5000 + b"}", 400, "not JSON"),
    ("POST", "/v2/models/shop/infer", {"inputs": []}, 400, "a list of 1 to 1000 tensors"),
    ("POST", "/v2/models/shop/infer", {"inputs": [GOOD]}, 400, "missing"),
    ("POST", "/v2/models/shop/infer", b" " * (2 << 20), 413, "a request has at most 1048576"),
    ("POST", "/v2/models/shop/rank", {"user": {}, "candidates": []}, 400, "candidates: 0; a request has 1 to 600 rows"),
    ("POST", "/v2/models/shop/rank", {"user": {"usr": 1}, "candidates": {}}, 400, "(did you mean 'user'?)"),
    ("POST", "/v2/models/shop/rank", {"users": {}}, 400, "'users': a rank request has no such key"),
])
def test_a_request_that_cannot_be_answered_is_a_sentence(server, method, path, body, status, said):
    found, answer, headers = server.ask(method, path, body)
    assert (found, said in answer["error"]) == (status, True), answer
    assert headers["content-type"] == "application/json"
    if status == 405:
        assert headers["allow"] == said.split("for ")[1]


@pytest.mark.parametrize("change, status, said", [
    ({"sort": {"eval": {}}}, 400, "sort:"), ({"sort": {"sum": {"clik": 1}}}, 400, "no output 'clik'"),
    ({"sort": {"sum": {}}}, 400, "at least one"), ({"top": 0}, 400, "top:"), ({"outputs": "click"}, 400, "outputs:"),
    ({"counts": 1}, 400, "counts is true or false"), ({"user": {"user": 2**70}}, 400, "'user'"),
    ({"parameters": {"timeout": -1}}, 400, "parameters.timeout"),
    ({"candidates": {"item": [1, 2], "price": [1.0]}}, 400, "missing"),
])
def test_a_rank_request_that_makes_no_sense(server, change, status, said):
    body = rank_body(one_user(2, 3))
    if "user" in change:
        change = {"user": {**body["user"], **change["user"]}}
    found, answer, _ = server.ask("POST", "/v2/models/shop/rank", {**body, **change})
    assert (found, said in answer["error"]) == (status, True), answer


def test_binary_sizes_must_add_up_and_nan_is_refused(server, shop):
    def ask(size, raw, datatype="FP64", header=None):
        body = body_of(tensors(rows(2, 3), shop.columns))
        body["inputs"] = [o for o in body["inputs"] if o["name"] != "price"] + [
            {"name": "price", "datatype": datatype, "shape": [2], "parameters": {"binary_data_size": size}}]
        head = json.dumps(body).encode()
        return server.ask("POST", "/v2/models/shop/infer", head + raw,
                          {"Inference-Header-Content-Length": header or str(len(head))})[:2]
    two = np.array([1.0, 2.0]).tobytes()
    assert ask(16, two)[0] == 200
    for size, raw, said in ((8, two[:8], "8 bytes; FP64 of shape [2] has 16"), (16, two[:9], "9 bytes are left"),
                            (16, two + b"x", "1 bytes follow the last tensor"), (-1, two, "binary_data_size -1"),
                            (16, np.array([np.nan, 1.0]).tobytes(), "holds NaN or infinity"),
                            (10**25, two, "binary_data_size 1000000")):
        status, answer = ask(size, raw)
        assert status == 400 and said in answer["error"], answer
    assert "has" in ask(16, two, header="99999999")[1]["error"]
    assert ask(16, two, header="-1")[0] == 400


def test_limits_of_lists_and_texts(server, shop):
    body = rank_body(one_user(2, 3))
    body["user"]["shown"] = [1] * 51
    assert server.ask("POST", "/v2/models/shop/rank", body)[:2] == (
        413, {"error": "'shown': a list has at most 50 entries"})
    body = rank_body(one_user(2, 3))
    body["user"]["tab"] = "x" * 41
    assert server.ask("POST", "/v2/models/shop/rank", body)[:2] == (
        413, {"error": "'tab': a text has at most 40 bytes"})


# ---- around it

def test_metrics_count_what_happened(server):
    server.ask("POST", "/v2/models/shop/rank", rank_body(one_user(5, 3)))
    text = server.ask("GET", "/metrics")[1]
    for line in ('funnelrank_requests_total{model="shop",status="200",way="rank"}', "funnelrank_stage_seconds_bucket{",
                 'funnelrank_feature_oov_total{feature="item",model="shop"}', 'funnelrank_queue_rows{model="shop"} 0.0',
                 'funnelrank_score_bucket{le="+Inf",model="shop",output="buy"}', "funnelrank_batch_rows_bucket{"):
        assert line in text, line
    read = lambda name: float(next(x for x in server.ask("GET", "/metrics")[1].splitlines() if x.startswith(name)
                                   ).split()[-1])
    before = read('funnelrank_score_count{model="shop",output="click"}')
    server.ask("POST", "/v2/models/shop/rank", rank_body(one_user(5, 3)))
    assert read('funnelrank_score_count{model="shop",output="click"}') == before + 5


def test_a_request_leaves_a_line_in_the_log(server):
    server.ask("POST", "/v2/models/shop/rank", rank_body(one_user(5, 3)))
    line = server.log[-1]
    assert line["status"] == 200 and line["rows"] == 5 and line["way"] == "rank" and line["ms"] > 0
    assert line["model"] == "shop" and line["bytes_in"] > 0 and {"queue_ms", "together", "version"} <= set(line)


def test_with_a_token_nothing_but_health_is_answered_without_it(shop):
    with Server(shop, token="s3cret") as server:
        assert server.ask("GET", "/v2/health/live")[0] == 200
        assert server.ask("GET", "/v2/models/shop")[0] == 401
        status, _, headers = server.ask("POST", "/v2/models/shop/rank", {}, {"Authorization": "Bearer s3cre"})
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert server.ask("GET", "/v2/models/shop", None, {"Authorization": "Bearer s3cret"})[0] == 200


def test_ready_is_not_live(server):
    server.models.stopping = True
    try:
        assert server.ask("GET", "/v2/health/live")[:2] == (200, {"live": True})
        assert server.ask("GET", "/v2/health/ready")[:2] == (503, {"ready": False})
    finally:
        server.models.stopping = False


def test_heads_are_bounded_in_size_and_time(server, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    for sent in (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"GET /v2 HTTP/1.1\r\nHo", b""):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
            s.sendall(sent)
            said = b""
            while part := s.recv(4096):
                said += part
            assert said.startswith((b"HTTP/1.1 431", b"HTTP/1.1 408"))
    assert server.ask("GET", "/v2/health/live")[0] == 200


HEAD = b"POST /v2/models/shop/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def read_all(s) -> bytes:
    said = b""
    while part := s.recv(4096):
        said += part
    return said


def test_an_answers_body_does_not_wait_until_its_head_is_acknowledged(server, monkeypatch):
    made, taken = Connection.connection_made, []
    monkeypatch.setattr(Connection, "connection_made", lambda self, transport: taken.append(transport.get_extra_info(
        "socket").dup()) or made(self, transport))
    assert server.ask("GET", "/v2")[0] == 200
    assert taken[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    taken[0].close()


def test_whoever_sends_no_more_still_gets_the_answer(server):
    body = json.dumps(rank_body(one_user(3, 1))).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
        s.sendall(HEAD % len(body) + body)
        s.shutdown(socket.SHUT_WR)                         # half closed
        assert s.recv(4096).startswith(b"HTTP/1.1 200")


def test_slow_bodies_end_in_408_and_hold_nobody_up(server, monkeypatch):
    monkeypatch.setattr(app, "SLOW", 0.5)
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(8)]
    for s in slow:
        s.sendall(HEAD % 999 + b"{")
    assert server.ask("POST", "/v2/models/shop/rank", rank_body(one_user(3, 1)))[0] == 200
    for s in slow[:4]:
        s.close()                                          # gone in the middle of a body
    for s in slow[4:]:
        with s:
            assert b"408" in read_all(s).split(b"\r\n")[0]
    until = time.monotonic() + 20
    while server.app.running and time.monotonic() < until:
        time.sleep(0.02)
    assert not server.app.running


def test_an_artefact_that_answers_otherwise_than_before_is_not_served(run, shop, monkeypatch):
    ranker = Ranker.load(run)
    scores = ranker.golden.scores
    ranker.golden = Golden(ranker.golden.rows, scores.set_column(0, "click", pa.array(
        scores["click"].to_numpy() + np.float32(1e-3))))
    with pytest.raises(ArtefactError, match="of its golden request 'click' differs by 0.001"):
        Servable(TorchEngine(ranker), "shop", "1").verify()
    ranker.golden = None
    with pytest.raises(ArtefactError, match="has no golden request"):
        Servable(TorchEngine(ranker), "shop", "1")


def test_the_openapi_document_names_every_path(server):
    status, said, _ = server.ask("GET", "/openapi.json")
    assert status == 200 and "/v2/models/shop/rank" in said["paths"]
    assert set(said["paths"]["/v2/models/shop/infer"]["post"]["responses"]) == {
        "200", "400", "401", "404", "408", "413", "415", "503", "504"}
