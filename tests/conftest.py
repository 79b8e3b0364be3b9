"""What all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# BLAS's threads wait for each other by spinning: beside other processes a product of two vectors takes ten times as
# much of the processor with two of them. Said before NumPy is there.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Every run tries the same cases, as slow as the machine may be: the more of them, the longer it takes, and a second
# run finds nothing that the first did not. `pytest --hypothesis-profile=explore` tries others, and more.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("explore", deadline=None, max_examples=200, print_blob=True)
settings.load_profile("same")


def pytest_configure() -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and with them every script they start to
    # see what Ctrl-C does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
