"""What every test starts with: signals, few threads, and property tests that try the same examples each time."""

import os
import signal

import torch
from hypothesis import HealthCheck, settings

for name, usual in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number and signal.getsignal(number) == signal.SIG_IGN:  # a shell's jobs in the background do not hear it
        signal.signal(number, usual)
torch.set_num_threads(int(os.environ.get("MTDIFF_THREADS", "1")))
settings.register_profile(
    "mtdiff", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mtdiff")
