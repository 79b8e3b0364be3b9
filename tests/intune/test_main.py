"""The package as a command."""

import subprocess
import sys
from pathlib import Path


def test_the_package_can_be_run(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "intune", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("intune ")
