"""What the click models' options become; what is trained is tested with the job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from intune.cli import train_click
from intune.cli.click_runs import Run
from intune.cli.train_click import DEMONSTRATION_ROWS, Tables, dcnv2, dlrm, unified_embedding
from intune.errors import ConfigError
from intune.workloads.clicks.tables import TableChoice
from intune.workloads.data.movielens import read_movielens
from intune.workloads.data.ratings import RatingsOptions, write_ratings
from tests.intune.workloads.ratings_files import drawn, write_recbole


def call(function: Callable[..., None], *words: str) -> None:
    tyro.cli(function, args=words, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Run, dict[str, Any]]]:
    """What was to be trained, instead of training it."""
    calls: list[tuple[Run, dict[str, Any]]] = []
    monkeypatch.setattr(Run, "start", lambda self, title, **model: calls.append((self, model)))
    return calls


def test_dlrm_hashes_and_takes_the_presets_recipe_where_nothing_is_said(
    started: list[tuple[Run, dict[str, Any]]],
) -> None:
    call(dlrm, "--data", "d")
    ((run, model),) = started
    assert model == {"data": "d", "model": "dlrm", "preset": "demo", "embedding": TableChoice()}
    assert run == Run()


def test_dcnv2_takes_what_is_said_of_tables_and_cross_layers(
    started: list[tuple[Run, dict[str, Any]]],
) -> None:
    words = "--data d --structure parallel --rank 0 --cross-layers 1 --embedding unified --table-rows 9 --tables 3"
    call(dcnv2, *words.split(), "--chunks", "4", "--schedule", "constant", "--epochs", "2")
    ((run, model),) = started
    assert model["embedding"] == TableChoice(kind="unified", rows=9, tables=3, chunks=4)
    assert (model["structure"], model["rank"], model["cross_layers"]) == ("parallel", 0, 1)
    assert (run.schedule, run.epochs) == ("constant", 2)


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("", TableChoice(kind="unified", rows=DEMONSTRATION_ROWS, tables=2, chunks=2)),
        ("--table-rows 700", TableChoice(kind="unified", rows=700, tables=2, chunks=2)),
        ("--embedding-parameters 800", TableChoice(kind="unified", parameters=800, tables=2, chunks=2)),
        ("--embedding full", TableChoice(kind="full")),
        ("--embedding hashed --embedding-parameters 23040", TableChoice(parameters=23_040)),
    ],
)
def test_the_demonstration_is_the_authors_where_nothing_is_said(
    started: list[tuple[Run, dict[str, Any]]], words: str, choice: TableChoice
) -> None:
    call(unified_embedding, "--data", "d", *words.split())
    ((run, model),) = started
    assert model == {
        "data": "d",
        "model": "dcnv2",
        "preset": "mlp",
        "embedding_dim": None,
        "embedding": choice,
    }
    assert (run.epochs, run.feeding.seed) == (5, 42)


def test_the_demonstration_trains_from_a_folder_of_ratings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_movielens(write_recbole(tmp_path / "files", drawn(users=40)))
    write_ratings(found, RatingsOptions(), tmp_path / "ml", kind="movielens")
    words = ["--data", str(tmp_path / "ml"), "--executor", "threads", "--quiet", "--batch-size", "100"]
    call(unified_embedding, *words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1,600 rows in ")
    assert lines[3].startswith("held-out AUC 0.")
    assert "on 80 rows" in lines[3]


def test_a_full_table_of_a_given_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="`table_rows`=5 leaves no row for each id"):
        Tables(embedding="full", table_rows=5).choice()


@pytest.mark.parametrize("function", [dlrm, dcnv2, unified_embedding])
@pytest.mark.parametrize("kind", ["hashed", "full"])
@pytest.mark.parametrize("option", ["tables", "chunks"])
def test_unified_tables_without_unified_tables_are_refused(
    started: list[tuple[Run, dict[str, Any]]], function: Callable[..., None], kind: str, option: str
) -> None:
    with pytest.raises(ConfigError, match=f"`{option}`=3 is of unified tables, but `embedding`='{kind}'"):
        call(function, "--data", "d", "--embedding", kind, f"--{option}", "3")
    call(function, "--data", "d", "--embedding", kind)
    assert started[0][1]["embedding"] == TableChoice(kind=kind)  # type: ignore[arg-type]


def test_the_demonstration_needs_no_numbers_of_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"y": [0, 1] * 50, "a": list(range(100))}), tmp_path / "0.parquet")
    columns = {"label": "y", "dense": [], "categorical": ["a"]}
    (tmp_path / "dataset.json").write_text(json.dumps({"schema_version": 1, "columns": columns}))
    call(unified_embedding, "--data", str(tmp_path), "--executor", "threads", "--quiet")
    assert capsys.readouterr().out.startswith("500 rows in ")


def test_a_run_can_be_followed_in_tensorboard(
    started: list[tuple[Run, dict[str, Any]]], tmp_path: Path
) -> None:
    call(dlrm, "--data", "d", "--tensorboard", str(tmp_path))
    assert started[0][0].saving.tensorboard == tmp_path


def test_every_command_has_its_help() -> None:
    for name in ("DLRM", "DCNV2", "UNIFIED_EMBEDDING"):
        text = getattr(train_click, f"{name}_HELP")
        assert f"\n  intune train {name.lower().replace('_', '-')} " in text
        assert "--resume" in text
