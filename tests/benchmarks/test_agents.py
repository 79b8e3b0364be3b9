"""The benchmark of agents: its parts on a few jobs, its tables, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import agents
from benchmarks.agents_tables import tables
from benchmarks.agents_variants import ABLATIONS, Without, maker
from intune.agents.candidates import NAMES
from intune.agents.evaluate import Trial
from intune.envs.jobs import Jobs
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator


@pytest.fixture
def one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scenario, "names", staticmethod(lambda: ("elastic",)))


@pytest.mark.usefixtures("one_family")
def test_parts_run_and_the_tables_show_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "OTHERS", ("planner+guard", "autotune"))
    monkeypatch.setattr(agents, "Trial", lambda **said: Trial(**{**said, "steps": 12}))
    settings = agents.Settings(jobs=2, kill_jobs=3)
    parts = {
        name: {"found": agents.PARTS[name](settings)} for name in ("families", "kills", "seeds", "unseen")
    }
    assert parts["kills"]["found"]["elastic"]["killed"] == 0
    assert parts["unseen"]["found"].keys() == {"skipped"}
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    for table in tables({"parts": parts}):
        console.print(table)
    said = console.export_text()
    assert "0 of 3" in said
    assert "worst family (elastic)" in said
    assert "pre-training" in said
    console.file.close()


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def part(name: str) -> Any:
        return lambda settings: ran.append(name) or {"a": 1}

    monkeypatch.setattr(agents, "PARTS", {"one": part("one"), "two": part("two")})
    monkeypatch.setattr(agents, "show", lambda document: None)
    monkeypatch.setattr(agents, "describe", dict)
    out = tmp_path / "r.json"
    agents.main(agents.Settings(only="one", json=out))
    agents.main(agents.Settings(json=out))
    assert ran == ["one", "two"]
    agents.main(agents.Settings(json=out, jobs=3))
    assert ran == ["one", "two", "one", "two"]
    assert json.loads(out.read_text())["settings"]["jobs"] == 3
    with pytest.raises(SystemExit, match="must be one of one, two"):
        agents.main(agents.Settings(only="three"))


def test_variants_do_not_choose_what_is_closed() -> None:
    jobs = Jobs.of(stages=3, cpu=[[1e-4, 3e-4, 5e-5]], cpus=8.0, memory=1e12, block_rows=500.0)
    agent = Without("pool", "plan")
    agent.start(1, 3)
    _, seen = agent.look(Simulator(jobs).run())
    closed = [name for name, allowed in zip(NAMES, seen.allowed[0], strict=True) if not allowed]
    assert set(closed) >= {name for name in NAMES if name.startswith(("pool", "plan"))}
    assert seen.allowed[0, 0]


def test_every_variant_can_be_made() -> None:
    for name in ABLATIONS:
        assert maker(name)().name


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents.report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="matplotlib: pip install"):
        agents.Settings(plot=Path("families.png"))


def test_a_part_that_needs_training_says_why_it_did_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    agents.main(agents.Settings(only="unseen"))
    assert "unseen not run: give --train to train 5 networks" in capsys.readouterr().out
