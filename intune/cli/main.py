"""The command `intune`: finds the subcommand, and turns errors into one line and an exit code.

A subcommand is a function with annotated arguments, which tyro makes options of; `intune.cli.commands` lists them.
Its module is imported when it is called, so that `intune --help` needs no Torch.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import Any

import tyro

from intune.cli.command import Command
from intune.cli.commands import find_commands
from intune.cli.remedies import of_commands

__all__ = ["COMMANDS", "GROUPS", "Command", "main"]

USAGE_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

ENDED_BY = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask the command to end; the second, where its terminal is gone, unless it is to live on (`nohup`)."""

RUN_FLAGS = ("--forget", "--help", "-h")
"""Options of `intune run` that no value follows."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a share of one, that is full."""


COMMANDS = find_commands()

GROUPS = {
    "": "InTune feeds the training of deep recommenders, and tunes the input pipeline while it runs.",
    "data": "Make a data set to train on.",
    "train": "Train a model through a live-resizable input pipeline.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began, as by ``2>&-``
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without our signs, as of LC_ALL=C, is no reason to fail
    before = {
        number: signal.signal(number, _terminate)
        for number in ENDED_BY
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        if words == ["--version"]:
            print(f"intune {_version()}")
        else:
            _run(_at_home(_separated(words)))
    except KeyboardInterrupt:
        print("intune: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has left (`intune … | head`). Python flushes once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        # Imported here since its package brings NumPy and Arrow along, which `--help` can do without.
        from intune.pipelines.errors import IntuneError, StageError

        # A path that the system refuses is told in its own words, which name it; a full disk names none.
        told = isinstance(error, OSError) and (error.filename or error.errno in FULL)
        if not isinstance(error, IntuneError) and not told:
            raise
        if isinstance(error, StageError) and error.__cause__ is not None:
            _tell_where(error.__cause__)
        print(f"intune: error: {' '.join(of_commands(str(error)).split())}", file=sys.stderr)
        return USAGE_ERROR
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _separated(words: list[str]) -> list[str]:
    """The words of `intune run` with ``--`` where the user's command begins, also where they left it out: what follows
    is the command's, an ``--agent`` or ``--log`` of its own too."""
    at = 1
    while words[:1] == ["run"] and at < len(words) and words[at] != "--":
        if not words[at].startswith("-"):
            return [*words[:at], "--", *words[at:]]
        at += 1 if "=" in words[at] or words[at] in RUN_FLAGS else 2
    return words


def _at_home(words: Sequence[str]) -> list[str]:
    """The words with ``~`` for the home folder where a shell leaves it (``--out=~/data``); not those of another
    command, after ``--``."""
    own = words.index("--") if "--" in words else len(words)
    found = []
    for word in words[:own]:
        name, sign, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        found.append(name + sign + (os.path.expanduser(value) if value.startswith(f"~{os.sep}") else value))
    return [*found, *words[own:]]


def _run(words: Sequence[str]) -> None:
    """Call the subcommand that `words` begin with; tyro leaves with `SystemExit` if there is none."""
    name = ""
    while name not in COMMANDS:
        choices = _choices(name)
        depth = len(name.split())
        if depth == len(words) or words[depth] not in choices:
            return _explain(name, choices, words[depth:])
        name = " ".join(words[: depth + 1])
    function, description = COMMANDS[name].load()
    tyro.cli(
        function,
        prog=f"intune {name}",
        description=_folded(description),
        args=words[len(name.split()) :],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def _folded(text: str) -> str:
    """Paragraphs no wider than the terminal, which would break words. Tyro joins lines that begin with a letter, so
    further lines begin with blanks."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        part
        if "\n " in part  # examples
        else textwrap.fill(
            part, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for part in text.split("\n\n")
    )


def _choices(group: str) -> dict[str, str]:
    """The words that may follow those of `group`, each with its summary."""
    depth = len(group.split())
    names = [name.split() for name in COMMANDS if name.split()[:depth] == group.split()]
    return {
        words[depth]: COMMANDS[name].summary
        if (name := " ".join(words[: depth + 1])) in COMMANDS
        else GROUPS[name]
        for words in names
    }


def _explain(name: str, choices: dict[str, str], words: Sequence[str]) -> None:
    """Let tyro print the help of a group of subcommands, or what is wrong with `words`, none of `choices`."""
    version = " Print the version with --version." if not name else ""
    tyro.extras.subcommand_cli_from_dict(
        {choice: _stub(summary) for choice, summary in choices.items()},
        prog=f"intune {name}".strip(),
        description=_folded(GROUPS[name] + version),
        args=words,
    )


def _stub(summary: str) -> Callable[[], None]:
    def nothing() -> None: ...

    nothing.__doc__ = summary
    return nothing


def _tell_where(error: BaseException) -> None:
    """Print the traceback of what a user's function raised, from the function on; nothing of one of ours."""
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename.startswith(ours):
        at = at.tb_next
    if at is not None or hasattr(error, "__notes__"):  # a worker process says in a note where it was
        traceback.print_exception(type(error), error, at)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("intune")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def _terminate(signum: int, frame: FrameType | None) -> Any:
    # As an exception, so that half-written data and workers are cleared away, as on Ctrl-C.
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
