"""Gets MovieLens 100k out of RecBole's wheel, where it is an example: downloaded without its needs, never imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from intune.pipelines.errors import StorageError

REQUIREMENT = "recbole==1.2.1"
"""The version whose `dataset_example` was looked into."""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def downloaded_wheel(run: Run = _run) -> Iterator[Path]:
    """The wheel, in a folder that is gone afterwards. Pip fetches it, from wherever pip is set up to.

    Args:
        run: runs pip.

    Raises:
        StorageError: pip could not get it.
    """
    with tempfile.TemporaryDirectory(prefix="intune-wheel-") as folder:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
        done = run([sys.executable, "-m", "pip", "download", *options, "--dest", folder, REQUIREMENT])
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise StorageError(
                f"pip could not download {REQUIREMENT} ({reason}); get the wheel or MovieLens's own zip file in "
                f"another way and name its path instead of `from_wheel`"
            )
        yield wheels[0]
