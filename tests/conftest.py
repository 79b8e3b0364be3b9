"""What all tests share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and with them every script they start to
    # see what Ctrl-C does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
