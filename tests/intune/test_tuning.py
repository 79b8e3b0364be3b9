"""`tune`: the same batches, nothing left behind, and clear words about what makes no sense."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

import intune
from intune.agents.base import Proposal
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.registry import make
from intune.control import Pace
from intune.envs.measurement import Measurement
from intune.envs.resources import ResourceReader
from intune.errors import ConfigError, LoaderError
from intune.knowledge import Knowledge, _say_homeless, keep
from intune.learnt import name_of
from intune.pipelines import Allocation, Budget, Loader, Pipeline
from intune.pipelines.budget import Usable
from intune.tuning import MOST_TOLD, _agent, _decides, _folder
from intune.tuning_resources import LAUNCHERS, ranks_here, resources_of
from tests.intune.tuned import STAGES, Clock, Scripted, simulated, tuner_threads, wait_until

QUICK = Pace(shortest=0.001, longest=0.002, tasks=0)
OFFER = Usable(cpus=8, memory=32 << 30, memory_left=16 << 30)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INTUNE", raising=False)
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK", *LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    yield
    wait_until(lambda: not tuner_threads())


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        values = np.arange(number * 500, (number + 1) * 500, dtype=np.int64)
        pq.write_table(pa.table({"x": values}), folder / f"{number}.parquet", row_group_size=100)
    return Pipeline.from_parquet(str(folder)).shuffle(row_groups=4, seed=1).batch(50).map(_double)


def _double(batch: dict[str, Any]) -> dict[str, Any]:
    return {"x": np.asarray(batch["x"]) * 2}


def _looked_up(batch: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    return batch


class Restless(Scripted):
    """Other slots at every round."""

    def propose(self, measured: Measurement) -> Proposal:
        self.asked += 1
        slots = np.array([[1.0 + (self.asked + at) % 3 for at in range(measured.stages)]])
        return Proposal(slots=slots, pool=np.zeros(1), explain=lambda _: f"round {self.asked}")


def numbers(batches: Any) -> list[Any]:
    return [np.asarray(batch["x"]).tolist() for batch in batches]


def loop(tuned: Any, change: int) -> list[Any]:
    """The batches of an epoch, during which the tuner makes at least so many decisions."""
    taken = []
    for number, batch in enumerate(tuned):
        taken.append(batch)
        if number and number % 5 == 0 and number // 5 <= change:
            wait_until(lambda wanted=number // 5: tuned.controller.rounds >= wanted or not tuned.tuning)
    return taken


def options(**changes: Any) -> dict[str, Any]:
    return {"cpus": 2, "memory": "64MiB", "pace": QUICK, **changes}


# ---- the same batches ----------------------------------------------------------------------------------------


def test_a_tuned_pipeline_gives_the_same_batches(pipeline: Pipeline) -> None:
    budget = Budget(cpus=2, memory=64 << 20)
    with pipeline.loader(executor="threads", budget=budget) as plain:
        expected = numbers(plain)
    with intune.tune(pipeline, agent=Restless(), executor="threads", **options()) as tuned:
        assert len(tuned) == len(expected) == 40
        assert numbers(loop(tuned, 4)) == expected
        assert tuned.tuning
        assert tuned.decisions
        assert "decisions; most delivered" in tuned.summary()
    assert not tuned.tuning


def test_a_loop_over_what_nothing_else_refers_to_is_tuned(pipeline: Pipeline) -> None:
    """`for batch in tune(…)`: the loop holds on to its tuner, and to nothing once it is over."""
    threads = [
        bool(tuner_threads())
        for _ in intune.tune(pipeline, agent=Restless(), executor="threads", **options())
    ]
    assert len(threads) == 40
    assert all(threads)
    wait_until(lambda: not tuner_threads())


@pytest.mark.parametrize("name", ["dqn", "planner"])
def test_an_agent_under_the_guard_by_name_is_the_same_agent(name: str) -> None:
    def kinds(agent: Any) -> list[str]:
        return [type(agent).__name__, *(kinds(agent.agent) if hasattr(agent, "agent") else [])]

    plain, guarded = _agent(name, guard=True), _agent(f"{name}+guard", guard=True)
    assert kinds(plain) == kinds(guarded) == kinds(_agent(f"{name}+guard", guard=False))
    assert kinds(plain)[:2] == ["Guard", "Referee"]
    assert kinds(_agent(name, guard=False))[0] == "Referee"
    # Made by the user, with weights of its own perhaps, it is no other agent; what is wrapped stays as it is.
    assert kinds(_agent(make(name), guard=True)) == kinds(plain)
    assert kinds(_agent(Referee(make(name)), guard=True)) == kinds(plain)
    assert kinds(_agent(Guard(make(name)), guard=True))[:2] == ["Guard", type(make(name)).__name__]


def test_a_loader_that_cannot_be_tuned_after_all_is_closed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is taken, say: workers that were begun must not wait for the garbage collector."""
    closed = []
    close = Loader.close
    monkeypatch.setattr(Loader, "close", lambda self: (closed.append(self), close(self)))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError):
            intune.tune(pipeline, prometheus=taken.getsockname()[1], executor="threads", **options())
    assert len(closed) == 1


def test_rays_workers_are_counted_by_their_own_clocks_only() -> None:
    class OnRay:
        budget = Budget(cpus=2, memory=1 << 20)
        executor = "ray"

    reader: Any = resources_of(OnRay())
    assert not reader._count_children
    OnRay.executor = "threads"
    reader = resources_of(OnRay())
    assert reader._count_children


def test_a_tuned_dataloader_gives_the_same_batches() -> None:
    dataset = TensorDataset(torch.arange(600), torch.rand(600, 3))
    torch.manual_seed(3)
    expected = list(DataLoader(dataset, batch_size=10, shuffle=True))
    torch.manual_seed(3)
    data = DataLoader(dataset, batch_size=10, shuffle=True)
    with intune.tune(data, agent=Restless(), workers="thread", **options()) as tuned:
        taken = loop(tuned, 4)
        assert tuned.dataset is dataset
        assert tuned.batch_size == 10
    assert len(taken) == len(expected) == 60
    for one, other in zip(taken, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_loop_goes_on_where_it_was_saved(pipeline: Pipeline) -> None:
    with intune.tune(pipeline, agent=Restless(), executor="threads", **options()) as tuned:
        expected = numbers(tuned)
        tuned.set_epoch(0)
        batches = iter(tuned)
        begun = [np.asarray(next(batches)["x"]).tolist() for _ in range(7)]
        state = json.loads(json.dumps(tuned.state_dict()))
    with intune.tune(pipeline, agent=None, executor="threads", **options()) as again:
        again.load_state_dict(state)
        assert begun + numbers(again) == expected


def test_the_agent_of_ones_own_in_the_docs_decides(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    code = re.search(r"## One of your own.*?```python\n(.*?)\nwith ", text, re.DOTALL)
    assert code is not None
    made: dict[str, Any] = {}
    exec(code[1], made)
    with intune.tune(pipeline, agent=made["Busiest"](), executor="threads", **options()) as tuned:
        loop(tuned, 4)
        assert tuned.failure is None
    assert any("is the busiest" in entry.reason for entry in tuned.decisions)
    simulated = re.search(r"In the simulator.*?```python\n(.*?)```", text, re.DOTALL)
    assert simulated is not None
    exec(simulated[1].replace("jobs=256", "jobs=2, steps=2"), made)
    assert "busiest Estimate(mean=" in capsys.readouterr().out


# ---- off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"tune": False}, {"agent": None}, "off", "0", " OFF "])
def test_off_is_off(how: Any, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(how, str):
        monkeypatch.setenv("INTUNE", how)
    changes = how if isinstance(how, dict) else {}
    log = tmp_path / "log"
    with intune.tune(pipeline, **{"agent": "even", **options(log=log), **changes}) as tuned:
        assert len(numbers(tuned)) == 40
        assert (tuned.tuning, tuned.controller, tuned.decisions) == (False, None, [])
        assert tuned.summary() == "tuning is off"
        assert not tuner_threads()
    assert not log.exists()


# ---- wrong arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"agent": "planer"}, "did you mean 'planner'"),
        ({"agent": 3}, "`agent`=3 must be a name, an Agent or None"),
        ({"agent": Scripted}, "Scripted.* must be a name, .* or an instance of a class of your own"),
        ({"agent": "oracle"}, "a real job has none"),
        ({"display": "loud"}, "use 'auto', 'live', 'lines' or 'quiet'"),
        ({"tune": "yes"}, "must be True or False"),
        ({"memory": "lots"}, "no amount of memory"),
        ({"log": "a\0b"}, r"`log`='a\\x00b' must be a folder"),
        ({"cpus": 0}, "`cpus`=0 must be a whole number"),
        ({"allocation": {"lode": 3}}, "did you mean 'load'"),
    ],
)
def test_wrong_arguments_are_told(wrong: dict[str, Any], said: str, pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match=said):
        intune.tune(pipeline, **{"agent": "even", **options(), **wrong})
    assert not tuner_threads()


def test_what_cannot_be_tuned_is_told() -> None:
    for path in ("data/train", Path("data/train")):
        with pytest.raises(ConfigError, match="is a path; give what reads it"):
            intune.tune(path, agent="even")
    data = TensorDataset(torch.arange(3))
    for source in ([1, 2, 3], (number for number in (1, 2)), 3, None, data, DataLoader):
        with pytest.raises(ConfigError, match="give a torch DataLoader or an intune Pipeline"):
            intune.tune(source, agent="even")
    with pytest.raises(ConfigError, match="has its own budget"):
        intune.tune(simulated(Clock()), agent="even", cpus=3)
    with pytest.raises(ConfigError, match="has its own budget"):
        intune.tune(simulated(Clock()), agent="even", executor="ray")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"knowledge": None}, "True, False"),
        ({"knowledge": 3}, "or a folder"),
        ({"knowledge": ""}, "to begin without and keep nothing"),
        ({"watch": [3]}, "must be a function"),
        ({"watch": None}, "must be a function"),
        ({"log": 5}, "must be a folder"),
        ({"log": ""}, "or None to write nothing"),  # a variable that is not set, and not the present folder
        ({"tensorboard": 5}, "must be a folder"),
        ({"pace": 3}, "Pace"),
        ({"guard": "no"}, "True or False"),
        ({"foo": 1}, "`foo`: intune.tune has no such option for a DataLoader"),
    ],
)
def test_arguments_of_a_wrong_type_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        intune.tune(DataLoader(TensorDataset(torch.arange(8)), 4), **{**options(), **wrong})


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        (lambda stats: replace(stats, stages=stats.stages[::-1]), "give the same in the same order"),
        (lambda stats: replace(stats, stages=stats.stages[:2]), "give the same in the same order"),
        (lambda stats: None, "must give intune.pipelines.metrics.PipelineStats"),
    ],
)
def test_stages_that_are_counted_otherwise_than_they_are_named_are_told(counted: Any, said: str) -> None:
    source: Any = simulated(Clock())
    read = source.stats
    source.stats = lambda: counted(read())
    with pytest.raises(ConfigError, match=said):
        intune.tune(source, agent="even", knowledge=False)


def test_an_unknown_option_of_a_pipeline_is_told(pipeline: Pipeline) -> None:
    with pytest.raises(ConfigError, match="for a Pipeline; beside its own there are: executor"):
        intune.tune(pipeline, agent="even", worker=3)


def test_a_single_watcher_needs_no_list() -> None:
    seen: list[Any] = []
    loader = DataLoader(TensorDataset(torch.arange(8)), 4)
    with intune.tune(loader, agent="even", watch=seen.append, **options()) as tuned:
        loop = iter(tuned)
        next(loop)
        wait_until(lambda: bool(seen))


def test_a_user_without_a_home_has_no_knowledge_but_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("INTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    _say_homeless.cache_clear()
    for _ in range(2):
        with intune.tune(DataLoader(TensorDataset(torch.arange(8)), 4), cpus=2, memory="64MiB") as tuned:
            assert len(list(tuned)) == 2
    assert caplog.text.count("no folder to keep what is learnt") == 1


def test_what_is_tuned_already_is_told(pipeline: Pipeline) -> None:
    with (
        intune.tune(pipeline, agent="even", **options()) as tuned,
        pytest.raises(ConfigError, match="tuned already"),
    ):
        intune.tune(tuned)


def test_an_agent_that_decides_already_is_told(pipeline: Pipeline) -> None:
    agent = make("planner")
    with (
        intune.tune(pipeline, agent=agent, **options()),
        pytest.raises(ConfigError, match="decides for another loader already"),
    ):
        intune.tune(pipeline, agent=Guard(agent), **options())
    with intune.tune(
        pipeline, agent=agent, executor="threads", **options()
    ) as tuned:  # that one is closed now
        assert len(numbers(tuned)) == 40


def test_trainings_in_several_threads_make_their_loaders_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make_one() -> None:
        made.append(intune.tune(simulated(Clock()), agent="even", knowledge=False))

    def another_meanwhile(agent: Any) -> Any:
        monkeypatch.setattr("intune.tuning._decides", decides)
        thread = threading.Thread(target=make_one)
        thread.start()
        thread.join(60)
        return decides(agent)

    make_one()
    make_one()
    decides = intune.tuning._decides
    monkeypatch.setattr("intune.tuning._decides", another_meanwhile)
    make_one()
    assert len(made) == 4
    for one in made:
        one.close()


# ---- nothing left behind, nothing broken ---------------------------------------------------------------------


def _loop_that(acts: Callable[[], None], pipeline: Pipeline) -> None:
    with intune.tune(pipeline, agent="even", executor="threads", **options()) as tuned:
        for number, _ in enumerate(tuned):
            if number == 3:
                assert tuner_threads()
                acts()


def test_an_exception_in_the_loop_leaves_no_thread(pipeline: Pipeline) -> None:
    def fails() -> None:
        raise RuntimeError("in the loop")

    with pytest.raises(RuntimeError, match="in the loop"):
        _loop_that(fails, pipeline)
    assert not tuner_threads()


def test_ctrl_c_in_the_loop_leaves_no_thread(pipeline: Pipeline) -> None:
    with pytest.raises(KeyboardInterrupt):
        _loop_that(lambda: signal.raise_signal(signal.SIGINT), pipeline)
    assert not tuner_threads()


class Unready(Scripted):
    def start(self, jobs: int, stages: int) -> None:
        raise RuntimeError("no weights")


def test_an_agent_that_cannot_begin_leaves_nothing_open(tmp_path: Path) -> None:
    for _ in range(2):  # the second time the folder is not the first one's any more
        with pytest.raises(RuntimeError, match="no weights"):
            intune.tune(simulated(Clock()), agent=Unready(), prometheus=0, log=tmp_path, knowledge=False)
    assert not (tmp_path / "loader-2").exists()


def test_ctrl_c_while_it_is_closed_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    source = simulated(Clock())
    tuned = intune.tune(source, agent="even", prometheus=0, knowledge=False)
    closed = Mock()
    assert tuned._finalizer is not None
    thread, sinks, _ = tuned._finalizer.peek()[2]
    sinks.closers.append(closed)
    monkeypatch.setattr(thread, "stop", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tuned.close()
    with pytest.raises(LoaderError):
        source.resize({"load": 2})
    closed.assert_called_once_with()


def test_what_is_closed_is_over(pipeline: Pipeline) -> None:
    tuned = intune.tune(pipeline, agent="even", executor="threads", **options())
    tuned.close()
    tuned.close()
    with pytest.raises(LoaderError, match="closed"):
        iter(tuned)


def test_a_forgotten_loader_leaves_no_thread_and_keeps_what_it_learnt(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    tuned: Any = intune.tune(pipeline, agent=Restless(), executor="threads", **options())
    loop(tuned, 4)
    assert tuner_threads()
    del tuned
    wait_until(lambda: not tuner_threads())
    assert list((tmp_path / "cache").glob("*.json"))


def test_an_agent_that_raises_does_not_end_training(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Scripted(ZeroDivisionError("in the agent"))
    with intune.tune(pipeline, agent=agent, executor="threads", **options()) as tuned:
        pause = threading.Event()
        for epoch in range(100):
            assert sum(not pause.wait(0.002) for _ in tuned) == 40
            if epoch and not tuned.tuning:
                break
        assert not tuned.tuning
        assert len(list(tuned)) == 40
    assert caplog.text.count("in the agent") == 2  # the line, and the last of the traceback
    assert agent.asked == 1


def test_two_tuned_loaders_one_inside_the_other(pipeline: Pipeline) -> None:
    data = DataLoader(TensorDataset(torch.arange(80)), batch_size=4)
    with (
        intune.tune(pipeline, agent=Restless(), executor="threads", **options()) as outer,
        intune.tune(data, agent=Restless(), workers="thread", **options()) as inner,
    ):
        seen = []
        for _ in outer:
            seen.append(sum(len(batch[0]) for batch in inner))
            if len(seen) == 1:
                assert len(tuner_threads()) == 2
    assert seen == [80] * 40


def test_a_log_and_watchers_are_told(pipeline: Pipeline, tmp_path: Path) -> None:
    told: list[Any] = []
    log = tmp_path / "run"
    with intune.tune(
        pipeline, agent=Restless(), executor="threads", log=log, watch=[told.append], **options()
    ) as tuned:
        loop(tuned, 4)
        rounds = tuned.controller.rounds
    lines = (log / "decisions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["stages"] == ["load", "shuffle", "batch", "transform"]
    assert len(lines) - 1 == len(told) >= rounds >= 3


def test_folders_may_be_told_from_the_home_folder_as_data_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    intune.tune(simulated(Clock()), agent=Scripted(), log="~/run", knowledge=False).close()
    assert (tmp_path / "run" / "decisions.jsonl").is_file()
    assert _folder("~/known") == tmp_path / "known"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_script_may_change_its_folder_while_it_is_tuned(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.decisions.DecisionLog._full", lambda log: True)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    assert _folder("known") == here / "known"
    with intune.tune(
        pipeline, agent=Restless(), executor="threads", **options(log="run", knowledge="known")
    ) as tuned:
        monkeypatch.chdir(there)
        loop(tuned, 4)
    assert sorted(path.name for path in (here / "run").iterdir()) == ["decisions.jsonl", "decisions.jsonl.1"]
    assert list(there.iterdir()) == []


def test_a_log_does_not_tell_all_that_a_function_carries(pipeline: Pipeline, tmp_path: Path) -> None:
    ids = {f"item-{number}": number for number in range(10_000)}
    carrying = pipeline.map(partial(_looked_up, ids=ids))
    with intune.tune(carrying, agent="even", executor="threads", log=tmp_path / "run", **options()):
        pass
    header = json.loads((tmp_path / "run" / "decisions.jsonl").read_text(encoding="utf-8"))
    assert header["pipeline"].startswith("Pipeline")
    assert len(header["pipeline"]) == MOST_TOLD


def test_a_full_disk_does_not_end_tuning(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with intune.tune(
        pipeline, agent=Restless(), executor="threads", log="/dev/full", knowledge="/dev/full", **options()
    ) as tuned:
        assert len(loop(tuned, 4)) == 40
        assert tuned.tuning
    assert caplog.text.count("not logged from now on") == 1
    assert caplog.text.count("cannot be kept") == 1


def test_what_cannot_share_slots_is_given_no_pool(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = simulated(Clock())
    job.pools = False  # type: ignore[attr-defined]
    with intune.tune(job, pace=QUICK) as tuned:
        assert not _decides(tuned.controller.agent)._pools  # type: ignore[union-attr,attr-defined]
        key = tuned._key
    # Nor the one that it had when it was written otherwise.
    keep(tmp_path / "cache", key, Knowledge(allocation=Allocation.shared(3), rate=1.0, memory=1e6))
    again = simulated(Clock())
    again.pools = False  # type: ignore[attr-defined]
    with intune.tune(again, pace=QUICK) as tuned:
        assert not tuned.stats().allocation.is_shared
    assert "does not fit (a SimulatedTunable has `pools`=False" in caplog.text


def test_what_is_not_iterated_over_is_tuned_from_the_start() -> None:
    with intune.tune(simulated(Clock()), agent=Scripted(), pace=QUICK, knowledge=False) as tuned:
        assert tuned.tuning
        assert tuned.stages == STAGES
        assert tuned.stats().rows == 0


# ---- processes -----------------------------------------------------------------------------------------------


def test_a_fork_has_no_say(pipeline: Pipeline, tmp_path: Path) -> None:
    log = tmp_path / "run"
    with intune.tune(pipeline, agent=Restless(), executor="threads", log=log, **options()) as tuned:
        batches = iter(tuned)
        next(batches)
        child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(tuned,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)  # of forking with threads: it is the point
            child.start()
        child.join(60)
        assert child.exitcode == 0
        assert len(list(batches)) == 39
        assert tuned.tuning


def _in_a_fork(tuned: Any) -> None:
    assert not tuned.tuning
    with pytest.raises(LoaderError):
        iter(tuned)
    tuned.close()


def test_it_does_not_go_to_another_process(pipeline: Pipeline) -> None:
    with (
        intune.tune(pipeline, agent="even", **options()) as tuned,
        pytest.raises(TypeError, match="belongs to its process"),
    ):
        pickle.dumps(tuned)


def test_ctrl_c_ends_a_script_that_forgot_to_close(pipeline: Pipeline, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import itertools, sys
        import intune
        from intune.pipelines import Pipeline
        if __name__ == "__main__":
            pipe = Pipeline.from_parquet({str(tmp_path / "data")!r}).batch(50)
            loader = intune.tune(pipe, agent="even", cpus=1, memory="64MiB")
            for epoch in itertools.count():
                for batch in loader:
                    pass
                print(epoch, flush=True)
        """)
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() == "0"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert said.strip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1


# ---- what the machine offers ---------------------------------------------------------------------------------


def test_ranks_on_one_machine_share_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Usable, "detect", classmethod(lambda cls, **_: OFFER))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with intune.tune(pipeline, agent="even", executor="threads", knowledge=False) as tuned:
        assert tuned.budget == Budget(cpus=2, memory=1 << 30)  # 8 CPUs and a quarter of 16 GiB, by four
        read = tuned.controller.observer._read_resources
        assert isinstance(read, ResourceReader)
        offered = read()
        assert offered.cpus == 2
        assert offered.memory_limit == pytest.approx(offered.resident + (4 << 30))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "nonsense")
    with intune.tune(pipeline, agent="even", executor="threads", knowledge=False) as tuned:
        assert tuned.budget == Budget(cpus=8, memory=4 << 30)


@pytest.mark.parametrize(("parent", "ranks"), [(object(), 3), (None, 1)])
def test_ranks_that_were_spawned_count_by_their_process_group(
    parent: object, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process on each machine, which no other began, has its machine to itself."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    assert ranks_here() == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert ranks_here() == ranks


@pytest.mark.parametrize(("bound", "cpus"), [(False, 2), (True, 8)])
def test_ranks_that_srun_has_bound_to_cpus_of_their_own_share_the_memory_only(
    bound: bool, cpus: int, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Usable, "detect", classmethod(lambda cls, **_: OFFER))
    monkeypatch.setattr("intune.tuning_resources.affine_cpus", lambda: OFFER.cpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 32 if bound else 8)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2)")
    with intune.tune(pipeline, agent="even", executor="threads", knowledge=False) as tuned:
        assert tuned.budget == Budget(cpus=cpus, memory=1 << 30)


@pytest.mark.parametrize(
    ("variables", "devices", "ranks"),
    [
        ({}, 0, 1),
        ({"LOCAL_WORLD_SIZE": "0"}, 0, 1),
        ({"WORLD_SIZE": "4"}, 0, 1),  # a leftover: nobody says that this is one of them
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 0, 4),
        ({"WORLD_SIZE": "16", "LOCAL_RANK": "1"}, 8, 8),
        ({"WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 8, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, 0, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "5,4(x3)"}, 0, 5),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "LOCAL_WORLD_SIZE": "8"}, 0, 8),  # torchrun under srun
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 0, 2),
        ({"MPI_LOCALNRANKS": "3"}, 0, 3),
    ],
)
def test_ranks_on_this_machine(
    variables: dict[str, str], devices: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == ranks


def test_the_next_run_begins_with_what_was_learnt(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="intune")
    with intune.tune(pipeline, agent=Restless(), executor="threads", **options()) as tuned:
        loop(tuned, 4)
    best = tuned.controller.best[0]  # once it is closed: until then it may become another
    with intune.tune(pipeline, agent="even", executor="threads", **options()) as again:
        assert again.stats().allocation.as_dict() == best.as_dict()
        assert "what an earlier run learnt" in caplog.text
    given = {"load": 1, "shuffle": 1, "batch": 1, "transform": 1}
    with intune.tune(pipeline, agent="even", executor="threads", allocation=given, **options()) as told:
        assert told.stats().allocation.as_dict() == given
    with intune.tune(pipeline, agent="even", executor="threads", knowledge=False, **options()) as fresh:
        assert fresh.stats().allocation.is_shared


def test_a_pipeline_is_known_again_by_what_it_does(pipeline: Pipeline) -> None:
    """Not by where in memory its functions lie, which every process has otherwise."""

    def made() -> Pipeline:
        def double(batch: dict[str, Any]) -> dict[str, Any]:
            return batch

        return pipeline.map(double)

    one, two = made(), made()
    assert repr(one) != repr(two)
    assert name_of(one) == name_of(two) != name_of(pipeline)
    with pipeline.loader(executor="threads") as loader:
        assert name_of(loader) == name_of(pipeline)


def test_dataloaders_of_other_data_are_others() -> None:
    """A training's and its validation's would else begin with what the other learnt."""
    data = TensorDataset(torch.arange(100))
    train, valid = Subset(data, range(90)), Subset(data, range(90, 100))
    loaders = [
        DataLoader(train, 10), DataLoader(valid, 10), DataLoader(data, 10), DataLoader(train, 5),
        DataLoader(train, 10, collate_fn=list), DataLoader(train, 10, num_workers=1),
        DataLoader(Subset(TensorDataset(torch.arange(95)), range(90)), 10),
    ]  # fmt: skip
    assert len({name_of(loader) for loader in loaders}) == len(loaders)
    assert name_of(DataLoader(Subset(data, range(90)), 10)) == name_of(loaders[0])


def test_what_was_learnt_where_there_was_more_memory_is_passed_over(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    with intune.tune(pipeline, agent="even", executor="threads", **options()) as tuned:
        key = tuned._key
    slots = {"load": 3, "shuffle": 3, "batch": 3, "transform": 3}
    for memory, allocation in ((1e18, None), (1e6, slots)):
        keep(
            tmp_path / "cache",
            key,
            Knowledge(allocation=Allocation.per_stage(slots), rate=1.0, memory=memory),
        )
        with intune.tune(pipeline, agent="even", executor="threads", **options()) as tuned:
            found = tuned.stats().allocation
            assert found.is_shared if allocation is None else found.as_dict() == allocation
