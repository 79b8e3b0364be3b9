from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from intune.cli.main import main
from intune.errors import StorageError
from intune.workloads.data import wheel
from intune.workloads.data.description import read_description
from intune.workloads.data.wheel import REQUIREMENT, downloaded_wheel
from tests.intune.workloads.ratings_files import drawn, write_recbole


def test_movielens_becomes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_recbole(tmp_path / "files", drawn())
    out = tmp_path / "out"
    assert main(["data", "movielens", str(folder), "--out", str(out), "--split", "leave-one-out"]) == 0
    printed = capsys.readouterr().out
    assert "12 users, 20 items; 96 interactions to train on, 12 to choose by, 12 to judge by" in printed
    assert read_description(out)["split"]["name"] == "leave-one-out"


def test_reviews_become_a_data_set_and_what_is_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews = tmp_path / "reviews.json"
    reviews.write_text(
        "".join(
            json.dumps({"reviewerID": f"A{u}", "asin": f"B{i}", "overall": r, "unixReviewTime": t}) + "\n"
            for u, i, r, t in drawn()
        )
        + "nothing\n"
    )
    out = tmp_path / "out"
    assert main(["data", "amazon-reviews", str(reviews), "--out", str(out), "--min-rating", "2"]) == 0
    printed = capsys.readouterr().out
    assert "bad lines left out: 1" in printed
    assert "rated too low" in printed
    assert "items without a title: 20" in printed


@pytest.mark.parametrize("words", [[], ["somewhere", "--from-wheel"]])
def test_exactly_one_source_is_named(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "movielens", *words, "--out", str(tmp_path / "out")]) == 2
    assert "give either PATH" in capsys.readouterr().err


def test_bad_data_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_recbole(tmp_path / "files", drawn(users=1))
    assert main(["data", "movielens", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "1 user left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def pip(code: int, *, write: bool) -> wheel.Run:
    """Stands for pip: writes the wheel, or does not."""

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        if write:
            (Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl").write_bytes(
                b"zip"
            )
        return subprocess.CompletedProcess(command, code, "", "WARNING: x\nERROR: no matching distribution\n")

    return run


def test_the_wheel_is_there_while_it_is_read_and_gone_afterwards() -> None:
    with downloaded_wheel(pip(0, write=True)) as path:
        assert path.read_bytes() == b"zip"
    assert not path.exists()


@pytest.mark.parametrize("code", [0, 1])
def test_a_download_that_fails_says_what_to_do_instead(code: int) -> None:
    with (
        pytest.raises(StorageError, match=rf"could not download {REQUIREMENT} \(ERROR: no matching"),
        downloaded_wheel(pip(code, write=False)),
    ):
        pytest.fail("there is nothing to read")


def test_the_command_reads_the_wheel_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    folder = write_recbole(tmp_path / "files", drawn())

    def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        path = Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"recbole/dataset_example/ml-100k/{file.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("intune.workloads.data.wheel.downloaded_wheel", lambda: downloaded_wheel(run))
    out = tmp_path / "out"
    assert main(["data", "movielens", "--from-wheel", "--out", str(out)]) == 0
    assert read_description(out)["source"] == f"the wheel of {REQUIREMENT}"
    assert "12 users" in capsys.readouterr().out
