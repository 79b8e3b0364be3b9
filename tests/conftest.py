"""What all tests share."""

from __future__ import annotations

import signal

from hypothesis import settings

# Every run tries the same cases, as slow as the machine may be; `pytest --hypothesis-profile=explore` tries others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("same")


def pytest_configure() -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and with them every script they start to
    # see what Ctrl-C does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
