from __future__ import annotations

import re
from pathlib import Path

import pytest

from intune.cli.main import main
from tests.intune.workloads.ratings_files import drawn, write_recbole


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ratings")
    files = write_recbole(folder / "files", drawn())
    assert main(["data", "movielens", str(files), "--out", str(folder / "data")]) == 0
    return str(folder / "data")


SMALL = ["--dim", "4", "--batch-size", "32", "--epochs", "2", "--executor", "threads", "--quiet"]


@pytest.mark.parametrize(
    "words",
    [
        ["bpr-mf"],
        ["bpr-mf", "--negatives", "dns", "--candidates", "2"],
        ["lightgcn", "--negatives", "mixgcf", "--depth", "2"],
        ["sheaf", "--stalk", "2", "--depth", "1"],
        ["ans", "--encoder", "lightgcn", "--candidates", "2"],
    ],
)
def test_a_run_ends_with_a_summary(data: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words, "--data", data, *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("192 rows in ")
    assert "2 epochs, step 6:" in lines[0]
    assert lines[1].startswith("waited for data ")
    assert lines[3].startswith("best after epoch ")
    assert lines[4].startswith("test: recall@20 ")


def test_a_run_goes_on_from_its_checkpoint(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "bpr-mf", "--data", data, *SMALL, "--checkpoints", str(tmp_path / "c")]
    assert main([*words, "--max-steps", "3"]) == 0
    assert main([*words, "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("went on from ") and line.endswith("step-000000000003.pt") for line in lines)
    assert main(words) == 2
    assert "holds those of another run" in capsys.readouterr().err


def test_interactions_that_are_not_asked_for_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "market")
    made = ["--users", "20", "--items", "60", "--audiences", "3", "--steps", "16", "--volume", "2"]
    assert main(["data", "market", "--out", folder, *made]) == 0
    assert main(["train", "lightgcn", "--data", folder, *SMALL]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"not asked for: \d+ of the test's interactions, whose user had met the item before", last
    )
    assert main(["train", "popularity", "--data", folder]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"never trained on; not asked for: \d+ items that their sessions had before", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--torch-threads", "0"], "`torch_threads`=0 must be a whole number, 1 or more"),
        (["--metric", "auc"], "`metric`='auc' is not evaluated"),
        (["--dim", "0"], "`dim`=0 must be a whole number, 1 or more"),
        (["--device", "foo"], "`device`='foo' is unknown"),
        (["--checkpoints", "/dev/null"], "no checkpoints can be kept in /dev/null"),
        (["--learning-rate", "1e30"], "learning_rate`"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    data: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "bpr-mf", "--data", data, *SMALL, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sheaf", "--data", str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().err
