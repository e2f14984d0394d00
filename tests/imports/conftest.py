"""Runs that only have to go through draw no pictures, which take three quarters of their time."""

import pytest

from funnelrank.evaluate import pictures


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "_draw", lambda *args, **keys: "<svg></svg>")
