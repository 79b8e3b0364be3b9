"""Event files on disks that fail: refused at the beginning, a warning later."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from intune.errors import StorageError
from intune.event_files import event_writer

pytest.importorskip("tensorboard")

FULL = OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Mock(side_effect=PermissionError(13, "no")))
    with pytest.raises(StorageError, match="cannot be a folder of event files"), event_writer(tmp_path):
        pass


@pytest.mark.parametrize("fails", ["add_scalar", "close"])
def test_a_disk_that_is_full_is_said_once_and_ends_no_training(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Mock(**{f"{fails}.side_effect": FULL})
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", lambda _: full)
    with event_writer(tmp_path) as write:
        for step in range(3):
            write(step, {"loss": 0.5})
    full.close.assert_called_once()
    assert full.add_scalar.call_count == (1 if fails == "add_scalar" else 3)
    assert caplog.messages == [f"event files are not written any more ({tmp_path}): {FULL}"]
