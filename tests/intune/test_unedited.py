"""Scripts that were not edited: their DataLoaders are tuned in place, and the script stays what it was."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from intune.cli.main import main
from intune.cli.run import environment
from intune.decisions import DecisionLog
from intune.pipelines.executors import worker_number
from intune.report import LOG, log_in
from intune.unedited import ATTRIBUTE, Unedited, _over, _Patch, patch, say
from tests.intune.tuned import tuner_threads, wait_until

SETTINGS = Unedited(agent="even", cpus=2, memory="64MiB", knowledge=False, workers="thread")


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(30))


class Doubled(DataLoader[Any]):
    """A subclass that has its own way of iterating, as Accelerate's."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch[0] * 2


@pytest.fixture
def patched() -> Iterator[None]:
    original = patch(DataLoader, SETTINGS)
    yield
    DataLoader.__iter__ = original  # type: ignore[method-assign]


@pytest.mark.usefixtures("patched")
def test_loaders_are_tuned_and_stay_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(TensorDataset(torch.arange(40)), batch_size=4)
    assert isinstance(loader, DataLoader)
    for _ in range(2):
        assert [batch[0].tolist() for batch in loader] == [list(range(i, i + 4)) for i in range(0, 40, 4)]
    tuned = getattr(loader, ATTRIBUTE).tuned
    assert tuned.controller is not None
    assert capsys.readouterr().err.count("DataLoader 1 (TensorDataset) is tuned by even") == 1
    doubled = Doubled(TensorDataset(torch.arange(4)), batch_size=2)
    assert torch.cat(list(doubled)).tolist() == [0, 2, 4, 6]
    numbers = DataLoader(Numbers(), batch_size=10)
    assert [batch.tolist() for batch in numbers] == [list(range(i, i + 10)) for i in (0, 10, 20)]
    for one in (loader, doubled, numbers):
        getattr(one, ATTRIBUTE).tuned.close()
    wait_until(lambda: not tuner_threads())


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("place", "value"),
    [("torch.utils.data._utils.worker._worker_info", object()), (f"{worker_number.__name__}._number", 0)],
    ids=["torch's", "ours"],
)
def test_loaders_in_worker_processes_are_left_alone(
    place: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each of them there would be a tuner, and workers for all processors."""
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    monkeypatch.setattr(place, value)
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3]]
    assert not hasattr(loader, ATTRIBUTE)
    assert capsys.readouterr().err == ""


def test_what_cannot_be_tuned_is_read_as_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = _Patch(DataLoader, Unedited(agent="even", memory="1B"))
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    assert [batch[0].tolist() for batch in one.iterate(loader)] == [[0, 1], [2, 3]]
    assert "is left as it is: `memory`=1" in capsys.readouterr().err
    monkeypatch.setenv("INTUNE", "off")
    off = _Patch(DataLoader, SETTINGS)
    assert len(list(off.iterate(DataLoader(TensorDataset(torch.arange(4)))))) == 4
    assert capsys.readouterr().err == ""


def hundredfold(samples: Any) -> Any:
    return torch.stack(samples) * 100


@pytest.mark.usefixtures("patched")
def test_a_tuned_loader_can_be_copied_and_sent_as_any_other() -> None:
    loader = DataLoader(torch.arange(8), batch_size=4)
    expected = [batch.tolist() for batch in loader]
    made = [copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))]
    assert b"intune." not in pickle.dumps(loader)  # who reads it may have none
    for one in made:
        one.collate_fn = hundredfold
        assert [batch.tolist() for batch in one] == [[100 * x for x in batch] for batch in expected]
    kept = [getattr(one, ATTRIBUTE) for one in (loader, *made)]
    assert len({id(one.tuned) for one in kept}) == 4
    assert [batch.tolist() for batch in loader] == expected
    for one in kept:
        one.tuned.close()


@pytest.mark.usefixtures("patched")
def test_what_is_changed_between_epochs_is_seen() -> None:
    for loader in (
        DataLoader(torch.arange(8), batch_size=4),
        Doubled(TensorDataset(torch.arange(8)), batch_size=4),
    ):
        list(loader)
        loader.collate_fn = lambda samples: ["changed"]
        assert list(loader) == (["changedchanged"] if isinstance(loader, Doubled) else [["changed"]]) * 2
        getattr(loader, ATTRIBUTE).tuned.close()


@pytest.mark.usefixtures("patched")
def test_what_becomes_impossible_to_tune_is_read_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(torch.arange(8), batch_size=4)
    list(loader)
    loader.num_workers, loader.prefetch_factor, loader.worker_init_fn = 1, 2, id
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "as ever from now on: `workers`='thread', but" in capsys.readouterr().err


@pytest.mark.usefixtures("patched")
def test_a_loader_is_forgotten_with_all_that_tunes_it() -> None:
    loader = DataLoader(torch.arange(8), batch_size=4)
    list(loader)
    gone = weakref.ref(loader)
    del loader
    assert gone() is None
    wait_until(lambda: not tuner_threads())


def test_loaders_of_one_loop_each_are_not_told_of_for_ever(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.unedited.MOST_TOLD", 2)
    one = _Patch(DataLoader, SETTINGS)

    def read() -> None:
        assert len(list(one.iterate(DataLoader(torch.arange(4), batch_size=2)))) == 2

    for _ in range(5):
        read()
    told = capsys.readouterr().err
    assert told.count("is tuned by even") == 2
    assert told.count("more loaders are made; from now on they are told of where something was decided") == 1
    assert len(one._tuned) < 5
    nothing = SimpleNamespace(rounds=0, failure=None, fault="", best=None, entries=())
    something = SimpleNamespace(rounds=3, failure=None, best=None, entries=())
    _over("DataLoader 1", nothing, always=True)
    _over("DataLoader 6", nothing, always=False)
    _over("DataLoader 7", something, always=False)
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "intune run: DataLoader 1: nothing was decided: no whole interval was measured",
        "intune run: DataLoader 7: 3 decisions",
    ]


@pytest.mark.parametrize(("seconds", "tuned"), [(1e9, 2), (0.0, 5)], ids=["short", "long"])
def test_loaders_too_short_to_be_tuned_are_left_alone_in_the_end(
    seconds: float, tuned: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.unedited.SHORT_S", seconds)
    monkeypatch.setattr("intune.unedited.MOST_SHORT", 2)
    one = _Patch(DataLoader, SETTINGS)

    def read(rows: int, batch_size: int) -> None:
        assert len(list(one.iterate(DataLoader(torch.arange(rows), batch_size=batch_size)))) == 2

    for users in range(5):
        read(4 + 2 * (users % 2), 3)
    told = capsys.readouterr().err
    assert told.count("is tuned by even") == tuned
    assert told.count("2 loaders like DataLoader 2 (Tensor) were over within") == (tuned == 2)
    read(8, 4)  # another kind
    assert "is tuned by even" in capsys.readouterr().err


def test_whatever_fails_the_job_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr("intune.tuning.tune", fails)
    one = _Patch(DataLoader, SETTINGS)
    loader = DataLoader(torch.arange(4), batch_size=2)
    for _ in range(2):
        assert len(list(one.iterate(loader))) == 2
    assert (
        capsys.readouterr().err
        == "intune run: DataLoader 1 (Tensor) is left as it is: RuntimeError: no room\n"
    )


def test_settings_go_through_the_environment() -> None:
    settings = Unedited(agent="planner", cpus=3, log="/a b/c", display="lines")
    assert Unedited.from_text(settings.to_text()) == settings
    assert Unedited.from_text("{nonsense") == Unedited.from_text("[]") == Unedited()
    variables = environment(settings, {"PYTHONPATH": "/x", "HOME": "/h"})
    hook, rest = variables["PYTHONPATH"].split(os.pathsep)
    assert (rest, variables["HOME"]) == ("/x", "/h")
    assert (Path(hook) / "sitecustomize.py").is_file()
    assert environment(settings, variables) == variables


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "`command` is empty"),
        (["run", "--", "no-such-program"], "write: -- python SCRIPT"),
        (["run", "--agent", "planer", "--", "python"], "did you mean 'planner'"),
        (["run", "--agent", "oracle+guard", "--", "python"], "a real job has none"),
        (["run", "--memory", "abc", "--", "python"], "is no amount of memory"),
        (["run", "--memory", "10", "--", "python"], "`memory`=10 must be"),
        (["run", "--cpus", "0", "--", "python"], "`cpus`=0 must be"),
    ],
)
def test_wrong_words_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err + captured.out


def test_where_standard_error_is_closed_nothing_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("something")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", None)
        say("nothing")
    assert capsys.readouterr() == ("", "intune run: something\n")


def start(tmp_path: Path, script: str, *words: str, path: str = "") -> subprocess.Popen[str]:
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-m", "intune.cli.main", "run", "--agent", "even", "--workers", "thread", *words, "--",
         "python", str(file), "--lr", "3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, [path]), os.getcwd()]),
             "INTUNE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip


def test_a_script_runs_as_ever_with_its_exit_code(tmp_path: Path) -> None:
    before = tmp_path / "site"
    before.mkdir()
    (before / "sitecustomize.py").write_text("print('the other sitecustomize')\n")
    script = """
        import sys
        print(sys.argv[1:])
        sys.exit(7)
        """
    with start(tmp_path, script, path=str(before)) as process:
        out, err = process.communicate(timeout=120)
    assert out.splitlines() == [*2 * ["the other sitecustomize"], "['--lr', '3']"]
    assert process.returncode == 7, err


def test_a_script_is_tuned_and_ctrl_c_ends_it_as_ever(tmp_path: Path) -> None:
    script = """
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        if __name__ == "__main__":
            loader = DataLoader(TensorDataset(torch.arange(100)), batch_size=10)
            while True:
                print(sum(int(x.sum()) for (x,) in loader), flush=True)
        """
    for name in ("loader-2", "rank-1-loader-1"):  # of an earlier run
        DecisionLog(tmp_path / "log" / name / LOG, header={}).close()
    with start(tmp_path, script, "--log", str(tmp_path / "log")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4950\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert "KeyboardInterrupt" in err
    assert "DataLoader 1 (TensorDataset) is tuned by even" in err
    header = json.loads(log_in(tmp_path / "log").read_text().splitlines()[0])
    assert header["agent"] == "even"
