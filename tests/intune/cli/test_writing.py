"""Where a command is to write is looked at before its work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from intune.cli.main import main
from intune.cli.writing import check_file, check_folder, check_picture, check_pictures
from intune.errors import ConfigError


def test_what_can_be_written_passes_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    for path in (tmp_path / "there", tmp_path / "new", tmp_path / "a" / "b" / "new", None):
        check_file("html", path)
    for path in (tmp_path, tmp_path / "new", tmp_path / "a" / "b", None):
        check_folder("plots", path)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"`html`=.* is a folder; give a file in it"):
        check_file("html", tmp_path)
    with pytest.raises(ConfigError, match="file is a file, in which nothing can be written"):
        check_file("html", tmp_path / "file" / "x.html")
    with pytest.raises(ConfigError, match=r"`plots`=.* is a file; give a folder"):
        check_folder("plots", tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        check_file("html", tmp_path / ("x" * 300))


@pytest.mark.parametrize("words", ["simulate --html", "compare --data x --plot", "simulate --json"])
def test_commands_look_before_they_work(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*words.split(), str(tmp_path / "file" / "x.html")]) == 2
    said = capsys.readouterr().err
    assert "is a file, in which nothing can be written" in said
    assert said.count("\n") == 1


def test_a_log_that_cannot_be_written_is_told_before_the_users_command_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    monkeypatch.setattr("intune.cli.run._become", lambda *words: ran.append(words))
    (tmp_path / "file").write_text("")
    assert main(["run", "--log", str(tmp_path / "file"), "--", "python", "train.py"]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert ran == []
    assert main(["run", "--log", str(tmp_path / "new"), "--", "python", "train.py"]) == 0
    assert len(ran) == 1


@pytest.mark.parametrize("words", ["simulate --plots", "compare --data x --plot"])
def test_pictures_that_nothing_can_draw_are_told_before_the_work(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_pictures("plots", None)
    assert main([*words.split(), str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err.startswith(f"intune: error: `{words.split('--')[-1]}` needs matplotlib")


@pytest.mark.parametrize("name", ["compare", "compare.gifs"])
def test_a_picture_of_a_kind_that_nothing_draws_is_told_before_the_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.cli.writing.check_pictures", lambda option, path: None)
    check_picture("plot", None)
    check_picture("plot", tmp_path / "a.PNG")
    assert main(["compare", "--data", "x", "--plot", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.endswith("must end in one of .png, .svg, .pdf, .jpg\n")
