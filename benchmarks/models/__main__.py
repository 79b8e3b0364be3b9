"""All claims about the bundled recommenders, one after the other: ``python -m benchmarks.models --out results``.

A family's claims are a line of `CLAIMS`: the data set they need and the command that measures them, which is run in a
process of its own. Its JSON lies in the folder afterwards, and the bars of all are in `models.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

REPOSITORY = Path(__file__).resolve().parents[2]

DATA: Mapping[str, tuple[str, ...]] = {
    "ml-100k": ("movielens", "--from-wheel"),
    "ml-100k-random": ("movielens", "--from-wheel", "--split", "random"),
    "ml-100k-sessions": ("movielens", "--from-wheel", "--split", "leave-one-out"),
    "ml-100k-steps": ("movielens", "--from-wheel", "--split", "global-time"),
    "market": ("market",),
    "criteo-1m": ("synthetic", "--rows", "1048576"),
    "criteo-4m": ("synthetic", "--rows", "4194304"),
}
"""Arguments of `intune data` that make each data set."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Where a claim is measured.

    Attributes:
        module: a program with ``--folder`` and ``--out``.
        arguments: what comes before those.
        data: a key of `DATA`.
        more: further ones, which it finds beside that one.
    """

    module: str
    arguments: tuple[str, ...]
    data: str
    more: tuple[str, ...] = ()


CLAIMS: Mapping[str, Measurement] = {
    "unified": Measurement(module="benchmarks.models.unified", arguments=("movielens",), data="ml-100k"),
    "unified-criteo": Measurement(
        module="benchmarks.models.unified", arguments=("criteo",), data="criteo-1m"
    ),
    "unified-criteo-4m": Measurement(
        module="benchmarks.models.unified", arguments=("criteo",), data="criteo-4m"
    ),
    "teacher": Measurement(module="benchmarks.models.unified", arguments=("teacher",), data="criteo-4m"),
    "sequences": Measurement(module="benchmarks.models.sequences", arguments=(), data="ml-100k-sessions"),
    "trends-market": Measurement(module="benchmarks.models.trends", arguments=("market",), data="market"),
    "trends-movielens": Measurement(
        module="benchmarks.models.trends", arguments=("movielens",), data="ml-100k-steps"
    ),
    "ans": Measurement(module="benchmarks.models.pairs", arguments=("ans",), data="ml-100k-random"),
    "sheaf": Measurement(module="benchmarks.models.pairs", arguments=("sheaf",), data="ml-100k-random"),
    "speed": Measurement(
        module="benchmarks.models.speed", arguments=(), data="ml-100k-random", more=("ml-100k-sessions",)
    ),
    "waiting": Measurement(
        module="benchmarks.models.waiting",
        arguments=(),
        data="ml-100k",
        more=("ml-100k-sessions", "market", "criteo-1m"),
    ),
}


def command(measurement: Measurement, folder: Path, out: Path) -> list[str]:
    options = ["--folder", str(folder), "--out", str(out)]
    return [sys.executable, "-m", measurement.module, *measurement.arguments, *options]


def make_data(name: str, folder: Path) -> list[str] | None:
    """The command line that makes a data set in `folder`; None where it is there already."""
    if (folder / "dataset.json").exists():
        return None
    return [sys.executable, "-m", "intune.cli.main", "data", *DATA[name], "--out", str(folder)]


def gather(reports: Mapping[str, Path]) -> dict[str, Any]:
    """The bars of every report that there is."""
    return {
        name: json.loads(path.read_text(encoding="utf-8")).get("bars", [])
        for name, path in reports.items()
        if path.exists()
    }


def main(*, out: Path, data: Path = Path("bench-data"), only: tuple[str, ...] = ()) -> None:
    """Measure all claims.

    Args:
        out: Folder for the JSON of each, and `models.json`.
        data: Folder of data sets; those that are missing are made.
        only: Names of the claims to measure: unified, unified-criteo, unified-criteo-4m, teacher, sequences,
            trends-market, trends-movielens, ans, sheaf, speed, waiting; all where none is given.
    """
    unknown = [name for name in only if name not in CLAIMS]
    if unknown:
        raise SystemExit(f"unknown claims {', '.join(unknown)}; there are {', '.join(CLAIMS)}")
    out.mkdir(parents=True, exist_ok=True)
    reports: dict[str, Path] = {}
    failed: list[str] = []
    for name, measurement in CLAIMS.items():
        if only and name not in only:
            continue
        folder = data / measurement.data
        reports[name] = out / f"{name}.json"
        commands: Sequence[list[str] | None] = (
            *(make_data(each, data / each) for each in (measurement.data, *measurement.more)),
            command(measurement, folder, reports[name]),
        )
        for words in commands:
            if words is None:
                continue
            print(f"— {name}: {' '.join(words[1:])}", flush=True)
            if subprocess.run(words, cwd=REPOSITORY, check=False).returncode:
                failed.append(name)
                break
    (out / "models.json").write_text(json.dumps(gather(reports), indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"not measured, because a command failed: {', '.join(failed)}")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.models")
