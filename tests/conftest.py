"""What every test starts with: few threads, and property tests that try the same examples each time."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(int(os.environ.get("MTDIFF_THREADS", "1")))
settings.register_profile(
    "mtdiff", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtdiff")
