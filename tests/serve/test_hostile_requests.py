"""A small part of benchmarks/chaos_serve.py: hostile bodies get a sentence, and the answers after them are the same."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from serving import Server, body_of, rows, tensors, train
from test_serve import one_user, rank_body

from funnelrank.serve.protocol import Limits
from funnelrank.serve.servable import Servable

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from chaos_serve import PATHS, hostile  # noqa: E402


@pytest.fixture(scope="module")
def shop(tmp_path_factory, no_pictures):
    return Servable.load(train(tmp_path_factory.mktemp("run") / "shop").folder, "shop")


def test_hostile_bodies_are_refused_by_sentences_and_change_nothing(shop):
    draw, found = random.Random(7), Counter()
    good = [(PATHS[0], body_of(tensors(rows(3, 2), shop.columns))), (PATHS[1], rank_body(one_user(6, 1)))]
    with Server(shop, limits=Limits(body=2 << 20)) as server:
        before = server.ask("POST", PATHS[1], good[1][1])[:2]
        for _ in range(300):
            path, body, headers = hostile(good, draw)
            status, said, _ = server.ask("POST", path, body, headers)
            found[status] += 1
            assert status < 500, (status, said, body[:300])
            assert status == 200 or said["error"]
        assert server.ask("POST", PATHS[1], good[1][1])[:2] == before and before[0] == 200
        assert not [line for line in server.log if "fault" in line]
    assert found[400] > 100 and set(found) <= {200, 400, 413}
