"""`intune run`: a command of the user, with its DataLoaders tuned. What is done there lives in `intune.unedited`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import tyro

from intune.cli.defaults import otherwise

if TYPE_CHECKING:
    from intune.unedited import Unedited

RUN_HELP = """\
Run a script with the torch DataLoaders it makes tuned, without editing it.

What follows -- is run as it is, with its own exit code and signals; python stands for the interpreter that intune is
installed for. In it, and in the Python processes that it starts (torchrun, accelerate launch), iterating over a
DataLoader goes through intune.tune: the same batches in the same order. Standard error says which loaders are tuned
and what came of it. INTUNE=off turns it off; so do python -E and -I, which pass over what the environment says.

Examples:
  intune run -- python train.py --epochs 3
  intune run --agent planner --log runs/today -- python train.py
  intune run --display lines -- torchrun --nproc-per-node 2 train.py
"""

PYTHON = ("python", "python3")


def run(
    command: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="-- COMMAND", help_behavior_hint="(required)"),
    ],
    /,
    *,
    agent: str = "dqn",
    cpus: Annotated[int | None, otherwise("all that the job may use", metavar="INT")] = None,
    memory: Annotated[str | None, otherwise("a quarter of what is free", metavar="STR")] = None,
    display: Literal["auto", "live", "lines", "quiet"] = "quiet",
    log: Annotated[Path | None, otherwise("none are written", metavar="PATH")] = None,
    workers: Literal["auto", "thread", "process"] = "auto",
    forget: bool = False,
) -> None:
    """Run a script with its DataLoaders tuned.

    Args:
        command: What to run, after --.
        agent: Who decides, such as dqn, planner or autotune.
        cpus: CPUs that each loader may keep busy.
        memory: Bytes that each loader's batches may hold, as in 4GiB.
        display: Show a panel (live), a line a change (lines), the first on a terminal (auto), or nothing.
        log: Folder for the loaders' decisions, for intune report; those of an earlier run in it are removed.
        workers: Where the dataset's code runs; auto finds out on the first batches.
        forget: Begin without what earlier runs learnt, and keep nothing.
    """
    from intune.agents.registry import check_real, summary
    from intune.cli.writing import check_folder
    from intune.pipelines.budget import LEAST_MEMORY, Budget, parse_bytes
    from intune.pipelines.errors import ConfigError
    from intune.unedited import Unedited

    if not command:
        raise ConfigError(
            "`command` is empty; write what to run after --, as in: intune run -- python train.py"
        )
    summary(agent)
    check_real(agent, "agent")
    check_folder("log", log)
    # Only whether they make sense: what the job may use is known where it runs.
    Budget(cpus=1 if cpus is None else cpus, memory=LEAST_MEMORY if memory is None else parse_bytes(memory))
    program = sys.executable if command[0] in PYTHON else shutil.which(command[0])
    if program is None:
        raise ConfigError(
            f"`command`: there is no program {command[0]!r}; to run a script, write: -- python SCRIPT"
        )
    if log is not None:
        from intune.decisions import clear_run

        clear_run(log)
    settings = Unedited(
        agent=agent,
        cpus=cpus,
        memory=memory,
        display=display,
        log=None if log is None else str(log.resolve()),
        knowledge=not forget,
        workers=workers,
    )
    _become(program, command, environment(settings, os.environ))


def environment(settings: Unedited, before: Mapping[str, str]) -> dict[str, str]:
    """The environment in which DataLoaders are tuned: `before`, with the folder of `sitecustomize` in front."""
    import intune

    hook = str(Path(intune.__file__).resolve().parent / "hook")
    paths = [
        hook,
        *(path for path in before.get("PYTHONPATH", "").split(os.pathsep) if path and path != hook),
    ]
    return {**before, "PYTHONPATH": os.pathsep.join(paths), "INTUNE_RUN": settings.to_text()}


def _become(program: str, command: tuple[str, ...], variables: dict[str, str]) -> NoReturn:
    """Be that program from now on, so that its exit code, terminal and signals are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program, [program, *command[1:]], variables)  # Python finds its packages by the first
