import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))      # tests share tests/made.py
torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)   # a busy machine is no fault
settings.load_profile("shared")


@pytest.fixture(scope="module")
def no_pictures():
    """The report is drawn by other tests, and takes longer than small runs."""
    from funnelrank import api
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.report_of, "page", lambda run: "<html>")
        yield
