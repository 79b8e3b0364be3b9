from __future__ import annotations

from pathlib import Path

import pytest

from intune.cli.main import main


def test_from_a_market_to_forecasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "market")
    made = ["--users", "30", "--items", "24", "--audiences", "3", "--steps", "16"]
    assert main(["data", "market", "--out", folder, *made]) == 0
    assert "30 users, 24 items" in capsys.readouterr().out
    words = ["train", "trendrec", "--data", folder, "--season", "12", "--executor", "threads"]
    words += ["--width", "4", "--hidden", "4", "--epochs", "2", "--item-epochs", "2"]
    assert main([*words, "--checkpoints", str(tmp_path / "c"), "--quiet"]) == 0
    shown = capsys.readouterr()
    first = shown.out.splitlines()
    assert first[0].startswith("next items: 2 epochs, step 4,")
    assert first[1].startswith("acceleration: 2 epochs, step 2,")
    assert first[-1].startswith("test: precision@10 ")
    assert not shown.err
    assert main([*words, "--checkpoints", str(tmp_path / "c"), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first[-1]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert [line[:8] for line in shown.err.splitlines()] == ["step 4/4", "step 2/2"]
    assert shown.out.splitlines()[-1] == first[-1]
    assert main(["train", "trendrec", "--data", folder, "--forecaster", "markov"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_fewer_items_than_places_are_ranked_as_far_as_they_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "market")
    made = ["--users", "30", "--items", "12", "--audiences", "3", "--steps", "16"]
    assert main(["data", "market", "--out", folder, *made]) == 0
    assert main(["train", "trendrec", "--data", folder, "--forecaster", "markov"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "precision@10" in last
    assert "@20" not in last


def test_what_makes_no_sense_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "market", "--out", str(tmp_path / "m"), "--users", "1"]) == 2
    assert "`users`=1 must be a whole number, 2 or more" in capsys.readouterr().err
    assert main(["train", "trendrec", "--data", str(tmp_path)]) == 2
    assert "no dataset.json" in capsys.readouterr().err
