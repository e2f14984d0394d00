import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))      # tests share tests/made.py
torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)   # a busy machine is no fault
settings.load_profile("shared")
