from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.agents.oracle_plan import plan
from intune.agents.qweights import load
from intune.cli.commands import find_commands
from intune.cli.pretrain import pretrain
from intune.pipelines.errors import ConfigError


def test_it_writes_weights_with_their_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "w.npz"
    pretrain(
        out=out,
        families=("paper",),
        episodes=2,
        jobs=8,
        steps=4,
        batch_size=8,
        gradient_steps=1,
        seed=5,
        quiet=True,
    )
    found = load(out)
    assert found.recipe["seed"] == 5
    assert found.recipe["families"] == ["paper"]
    assert f"wrote {out}: score 0." in capsys.readouterr().err


@pytest.mark.parametrize("agent", ["dqn", "dqn-paper"])
def test_what_was_learnt_before_ctrl_c_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, agent: Any
) -> None:
    calls = 0

    def planned(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > done:
            raise KeyboardInterrupt
        return plan(*given, **options)

    module = "dqn_paper_training" if agent == "dqn-paper" else "pretrain"
    monkeypatch.setattr(f"intune.agents.{module}.plan", planned)
    out = tmp_path / "w.npz"
    for done in (2, 0):
        with pytest.raises(KeyboardInterrupt):
            pretrain(
                out=out, agent=agent, families=("paper",), episodes=9, jobs=8, steps=4, batch_size=8,
                gradient_steps=1, quiet=True,
            )  # fmt: skip
        assert out.exists() == (done > 0)
        if done:
            assert f"wrote {out} of 2 of 9 episodes: score 0." in capsys.readouterr().err
            with np.load(out) as stored:
                assert json.loads(stored["recipe"].tobytes())["episodes"] == 2
            out.unlink()
            calls = 0


def test_progress_tells_of_share_and_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(
        out=tmp_path / "w.npz", agent="dqn-paper", families=("paper",), episodes=2, jobs=3, steps=3, batch_size=8,
        gradient_steps=1,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "of the best" in said


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        pretrain(out=tmp_path / "w.pt")


def test_a_place_that_cannot_be_written_to_is_told_at_once_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "w.npz", tmp_path / "folder.npz"):
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="`out`="):
            pretrain(out=out)
    with pytest.raises(ConfigError, match="`jobs`=0"):
        pretrain(out=tmp_path / "new" / "w.npz", jobs=0)
    assert not (tmp_path / "new").exists()


def test_it_is_a_command() -> None:
    function, text = find_commands()["pretrain"].load()
    assert function is pretrain
    assert "Examples:" in text
