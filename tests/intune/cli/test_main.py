"""The command line as a whole: finding subcommands, errors, exit codes, time to help."""

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intune.cli import main as cli
from intune.cli.main import COMMANDS, GROUPS, RUN_FLAGS, Command, _at_home, _separated, main
from intune.cli.run import run
from intune.errors import ConfigError, StageError
from intune.pipelines.budget import parse_bytes


def _stub_command(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., None], name: str = "data stub"
) -> None:
    """Make `function` a subcommand."""
    command = Command("Do something.", "stub:stub")
    monkeypatch.setattr(Command, "load", lambda self: (function, "Does something."))
    monkeypatch.setitem(COMMANDS, name, command)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_a_function_help_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: intune {name}" in text
    assert f"\n  intune {name} " in text
    prose = text[text.index("\n\n") : text.index("\nExamples:")]
    assert not [line for line in prose.splitlines() if len(line) > 80 and not line.startswith("   ")]
    assert " " not in name or name.split()[0] in GROUPS


@pytest.mark.parametrize("group", ["", "data"])
def test_groups_list_their_subcommands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*group.split(), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert GROUPS[group] in " ".join(text.split())
    words = {name.split()[len(group.split())] for name in COMMANDS if name.startswith(group)}
    assert all(f"• {word}" in text for word in words)


@pytest.mark.parametrize(
    "arguments", [[], ["data"], ["nonsense"], ["data", "nonsense"], ["data", "synthetic"]]
)
def test_what_is_no_command_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_arguments_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stub(*, number: int, flag: bool = False) -> None:
        seen.append((number, flag))

    _stub_command(monkeypatch, stub)
    assert main(["data", "stub", "--number", "3", "--flag"]) == 0
    assert seen == [(3, True)]


def test_an_error_of_ours_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub() -> None:
        raise ConfigError("`x` must be\n  at least 1")

    _stub_command(monkeypatch, stub)
    assert main(["data", "stub"]) == 2
    assert capsys.readouterr().err == "intune: error: `x` must be at least 1\n"


def test_where_a_users_function_failed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def users(text: str) -> None:
        parse_bytes(text)

    def fail(function: Callable[[str], object]) -> str:
        def command() -> None:
            try:
                function("lots")
            except ConfigError as error:
                error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
                raise StageError("stage 'transform': it failed; mend the function") from error

        _stub_command(monkeypatch, command)
        assert main(["data", "stub"]) == 2
        return capsys.readouterr().err

    only = "intune: error: stage 'transform': it failed; mend the function\n"
    told = fail(users)
    assert told.startswith("Traceback (most recent call last):\n")
    assert "in users" in told.splitlines()[1]
    assert told.endswith(only)
    assert fail(parse_bytes) == only


def test_a_path_that_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub() -> None:
        Path("/proc/nothing/x.html").write_text("")

    _stub_command(monkeypatch, stub)
    assert main(["data", "stub"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("intune: error: ")
    assert said.count("\n") == 1
    assert "/proc/nothing/x.html" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stub() -> None:
        Path("/dev/full").write_text("x")

    _stub_command(monkeypatch, stub)
    assert main(["data", "stub"]) == 2
    assert capsys.readouterr().err == "intune: error: [Errno 28] No space left on device\n"


def test_a_fault_of_the_system_without_a_path_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub() -> None:
        raise OSError(5, "of no file")

    _stub_command(monkeypatch, stub)
    with pytest.raises(OSError, match="of no file"):
        main(["data", "stub"])


def test_a_terminal_without_our_signs_is_served() -> None:
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "intune.cli.main", "--help"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: intune" in done.stdout


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub() -> None:
        raise ZeroDivisionError

    _stub_command(monkeypatch, stub)
    with pytest.raises(ZeroDivisionError):
        main(["data", "stub"])


def test_an_interrupt_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub() -> None:
        raise KeyboardInterrupt

    _stub_command(monkeypatch, stub)
    assert main(["data", "stub"]) == 130
    assert capsys.readouterr().err == "intune: interrupted\n"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("intune ")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(cli.__file__).parents[2])!r})\n"
        "from intune.cli.main import main\n"
        "try: main(['data', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_who_leaves_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        command = [sys.executable, "-m", "intune.cli.main", "data", "--help"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_an_output_that_was_closed_before_is_no_fault(
    closed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub() -> None:
        for stream in (sys.stdout, sys.stderr):
            print("said", file=stream, flush=True)
            stream.flush()

    _stub_command(monkeypatch, stub)
    with monkeypatch.context() as patched:
        patched.setattr(sys, closed, None)
        assert main(["data", "stub"]) == 0
        getattr(sys, closed).close()
    told = capsys.readouterr()
    assert told.out + told.err == "said\n"


def test_home_is_known_in_options_and_left_to_commands_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--out=~/data", "~/data", "--name", "~", "a~/b", "--", "--out=~/data"]
    home = f"{tmp_path}/data"
    assert _at_home(words) == [f"--out={home}", home, "--name", "~", "a~/b", "--", "--out=~/data"]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("run python x.py --log a -- b", "python x.py --log a -- b"),
        ("run --agent even --forget --memory=1GiB python x.py --agent z", "python x.py --agent z"),
        ("run --forget -- python x.py", "python x.py"),
        ("run -- python x.py -- b", "python x.py -- b"),
        ("run --help", None),
        ("run --agent", None),
        ("report run python", None),
        ("", None),
    ],
)
def test_options_of_a_command_that_is_run_are_its_own(words: str, command: str | None) -> None:
    given = words.split()
    separated = _separated(given)
    if command is None:
        assert separated == given
    else:
        assert separated[separated.index("--") + 1 :] == command.split()


def test_every_option_of_run_but_the_flags_takes_a_value() -> None:
    options = [one for one in inspect.signature(run).parameters.values() if one.kind is one.KEYWORD_ONLY]
    flags = {f"--{one.name}" for one in options if isinstance(one.default, bool)}
    assert {*flags, "--help", "-h"} == set(RUN_FLAGS)


def test_a_hang_up_is_passed_over_where_it_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `nohup`."""
    seen = []
    _stub_command(monkeypatch, lambda: seen.append(signal.getsignal(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["data", "stub"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]
