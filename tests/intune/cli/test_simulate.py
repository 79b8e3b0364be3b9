from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from intune.agents.evaluate import evaluate
from intune.agents.outcomes import Trace
from intune.agents.registry import names
from intune.cli.main import main
from intune.cli.simulate import DEFAULT_AGENTS, compared_with, guarded_names, run
from intune.errors import ConfigError


def test_agents_run_with_and_without_guard() -> None:
    assert guarded_names(("ds2", "oracle"), "both") == ("ds2", "ds2+guard", "oracle")
    assert guarded_names(("ds2", "ds2+guard"), "with") == ("ds2+guard",)
    assert guarded_names(("ds2+guard",), "without") == ("ds2",)
    assert guarded_names(("ds2+guard", "even"), "as-named") == ("ds2+guard", "even")


def test_agents_there_are_not_are_told() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bottleneck'"):
        guarded_names(("botleneck",), "both")
    with pytest.raises(ConfigError, match="empty"):
        guarded_names((), "both")


def test_the_default_agents_exist() -> None:
    assert set(DEFAULT_AGENTS) <= set(names())


def test_from_the_command_line_to_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "report.html"
    words = "simulate --agents ds2 static oracle --scenarios paper --jobs 12 --steps 6 --reference static"
    code = main(
        [*words.split(), "--guard", "without", "--json", str(figures), "--html", str(page), "--quiet"]
    )
    assert code == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("paper: 12 jobs, 6 decisions each")
    document = json.loads(figures.read_text())
    agents = document["scenarios"]["paper"]["agents"]
    assert list(agents) == ["ds2", "static", "oracle"]
    assert agents["oracle"]["outcomes"]["whole"]["mean"] > agents["ds2"]["outcomes"]["whole"]["mean"]
    assert agents["ds2"]["ratio"]["whole"]["mean"] > 1.5
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_is_told_with_the_file_and_takes_no_table_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    words = "simulate --agents even --scenarios paper --jobs 2 --steps 2 --guard without --quiet"
    assert main([*words.split(), "--html", str(page), "--json", "/dev/full"]) != 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0].startswith("paper: 2 jobs")
    assert page.read_text().startswith("<!doctype html>")
    assert "No space left on device: '/dev/full'" in told.err


def test_ctrl_c_leaves_the_tables_of_the_scenarios_that_were_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> dict[str, Trace]:
        if stops.pop(0):
            raise KeyboardInterrupt
        return evaluate(*given, **options)

    monkeypatch.setattr("intune.agents.evaluate.evaluate", interrupted)
    figures = tmp_path / "figures.json"
    words = f"simulate --agents even --scenarios wide paper --jobs 2 --steps 2 --guard without --quiet --json {figures}"
    stops = [False, True]
    assert main(words.split()) == 130
    told = capsys.readouterr()
    assert told.out.splitlines()[0].startswith("wide: 2 jobs, 2 decisions each")
    assert "paper" not in told.out
    assert told.err == "intune: interrupted\n"
    assert not figures.exists()
    stops = [True]
    assert main(words.split()) == 130
    assert capsys.readouterr().out == ""


def test_a_seed_decides_everything() -> None:
    options = {"jobs": 8, "steps": 4, "split": "test", "reference": "static"}
    first, again, other = (
        run(("ds2", "static"), ("wide",), seed=seed, **options).scenarios["wide"][0] for seed in (1, 1, 2)
    )
    assert first.as_dict() == again.as_dict()
    assert first.as_dict() != other.as_dict()


def test_a_reference_there_is_not_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = "simulate --agents even --jobs 1 --steps 1 --quiet --reference autotun"
    assert main(words.split()) == 2
    assert "did you mean 'autotune'" in capsys.readouterr().err


def test_a_scenario_there_is_not_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--scenarios", "papr", "--quiet"]) == 2
    assert "papr" in capsys.readouterr().err


def test_where_all_run_under_the_guard_so_does_the_reference() -> None:
    assert compared_with("autotune", ("ds2+guard", "autotune+guard")) == "autotune+guard"
    assert compared_with("autotune", ("autotune", "autotune+guard")) == "autotune"
    assert compared_with("autotune", ("ds2", "ds2+guard")) == "autotune"


def test_no_scenario_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--agents", "even", "--scenarios"]) == 2
    assert "`scenarios` is empty" in capsys.readouterr().err


def test_files_are_written_although_nobody_reads_the_tables(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = "simulate --agents static --scenarios wide --jobs 2 --steps 2 --guard without --quiet --json"
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "intune.cli.main", *words.split(), str(figures)],
            stdout=writes, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(writes)
    assert done.returncode == 141
    assert done.stderr == f"wrote {figures}\n"
    assert json.loads(figures.read_text())["scenarios"]["wide"]
