"""Worker processes are forks of one that has imported what they need, and are as fresh interpreters otherwise."""

import errno
import importlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest

from intune.pipelines.executors import fork_server, fork_server_process
from intune.pipelines.executors.channel import receive_some
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.executors.messages import Born, Fork
from intune.pipelines.executors.process import Process, _Fresh
from intune.pipelines.executors.processes import ProcessPool, _mentioned
from intune.pipelines.stages import Map

pytestmark = pytest.mark.skipif(not fork_server.available, reason="this system has no fork server")


@pytest.fixture(autouse=True)
def own_server(monkeypatch) -> None:
    """Whatever other tests' pools have imported."""
    monkeypatch.setattr(fork_server, "_server", None)


class Asked:
    """Processes, each of which runs any function of no arguments."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._function = cloudpickle.dumps(lambda block: {"made": block["f"]()})

    def begin(self, libraries=()) -> Process:
        process = Process(libraries=libraries)
        self._open.callback(process.end, 5.0)
        self._open.callback(process.hang_up)
        process.prepare("any", self._function)
        return process

    def ask(self, process, function):
        made, _ = process.call("any", {"f": function}, None)
        return made["made"]

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def asked() -> Iterator[Asked]:
    processes = Asked()
    yield processes
    processes.close()
    assert server_pids() == []


def test_what_one_had_to_import_the_next_ones_have_at_once(asked):
    before = asked.begin()
    assert not asked.ask(before, lambda: "scipy" in sys.modules)
    asked.ask(before, lambda: importlib.import_module("scipy").__version__)
    after = asked.begin()
    assert asked.ask(after, lambda: "scipy" in sys.modules)
    assert not asked.ask(after, lambda: "pandas" in sys.modules)


def test_a_library_that_a_function_names_is_imported_for_all_if_this_process_has_it():
    def function(block):
        import scipy

        return {"version": np.array(scipy.__version__)}

    importlib.import_module("scipy")
    pools = [ProcessPool([Map(function=f, workers="process", name="any")]) for f in (function, lambda _: {})]
    assert [pool._libraries for pool in pools] == [["scipy"], []]
    for pool in pools:
        pool.close()


def test_names_of_libraries_are_found_in_a_function_with_a_large_table_about_as_fast_as_bytes_are():
    importlib.import_module("scipy")
    table = np.arange(1 << 19).tobytes()

    def seconds(search):
        began = time.thread_time()
        assert not search(table)
        return time.thread_time() - began

    libraries = [name for name in fork_server.LIBRARIES if name in sys.modules]
    found = min(seconds(lambda table: _mentioned([table])) for _ in range(3))
    bare = min(seconds(lambda table: any(name.encode() in table for name in libraries)) for _ in range(3))
    assert found < 10 * bare  # 40 times while every byte was asked what stands before it
    for text, named in ((b"\x00scipy.", True), (b"scipy", True), (b"ascipy", False), (b"scipy_", False)):
        assert ("scipy" in _mentioned([text])) is named


def test_what_all_need_is_imported_once_and_what_is_not_there_is_theirs_to_tell(asked):
    process = asked.begin(["colorsys", "there_is_no_such_module"])
    assert asked.ask(process, lambda: "colorsys" in sys.modules)
    made, _ = process.call("any", {"f": lambda: __import__("there_is_no_such_module")}, None)
    assert isinstance(made, ModuleNotFoundError)


def test_their_surroundings_are_those_of_the_moment(asked, tmp_path, monkeypatch, capfd):
    first = asked.begin()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET_LATER", "1")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(sys, "argv", ["train.py", "--fast"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    processors = os.sched_getaffinity(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    os.sched_setaffinity(0, {min(processors)})
    try:
        second = asked.begin()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.sched_setaffinity(0, processors)

    def look():
        print("seen where it is printed to now", flush=True)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        named = os.environ.get("SET_LATER"), os.environ.get("HOME")
        return os.getcwd(), named, sys.path[0], limit, os.sched_getaffinity(0), sys.argv

    assert asked.ask(second, look) == (
        str(tmp_path), ("1", None), str(tmp_path / "modules"), soft - 1, {min(processors)}, ["train.py", "--fast"]
    )  # fmt: skip
    assert capfd.readouterr().out == "seen where it is printed to now\n"
    assert asked.ask(first, os.getcwd) != str(tmp_path)


def test_in_a_folder_that_may_not_be_looked_at_they_are_where_they_were_started(asked, monkeypatch):
    """As where a service gave up its rights in root's home."""
    really = os.open

    def refusing(path, *args, **kwargs):
        if path == ".":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return really(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)
    assert asked.ask(asked.begin(), os.getcwd) == os.getcwd()


def test_what_files_they_make_may_be_read_by_is_as_it_is_here(asked):
    first = asked.begin()
    before = os.umask(0o027)
    try:
        second = asked.begin()
        assert [asked.ask(process, lambda: os.umask(0)) for process in (first, second)] == [before, 0o027]
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up what it may")
def test_what_was_given_up_no_process_has_from_then_on(asked):
    asked.begin()
    before = os.getgroups()
    os.setgroups([65534])
    try:
        assert asked.ask(asked.begin(), os.getgroups) == [65534]
    finally:
        os.setgroups(before)


def test_each_draws_numbers_of_its_own(asked):
    draws = [asked.ask(asked.begin(), lambda: np.random.random(4).tolist()) for _ in range(3)]  # noqa: NPY002
    assert len({tuple(draw) for draw in draws}) == 3


def test_a_server_that_is_killed_takes_nothing_with_it(asked):
    first = asked.begin()
    (server,) = server_pids()
    os.kill(server, signal.SIGKILL)
    psutil.Process(server).wait()
    second = asked.begin()
    assert server_pids() not in ([], [server])
    assert asked.ask(first, os.getpid) == first.pid != second.pid == asked.ask(second, os.getpid)
    first.kill()
    assert first.end(5.0) == "ended, nobody knows how"


def test_one_that_cannot_be_forked_is_told(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()

    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(fork_server_process, "_fork", fork)
    with ours:
        thread = threading.Thread(target=fork_server_process.Server(theirs, -1).serve)
        thread.start()
        socket.send_fds(ours, [pickle.dumps(Fork(7, []))], [writing])
        message, _ = receive_some(ours, 4096)
    thread.join()
    theirs.close()
    told = pickle.loads(message)
    assert told == Born(7, refused="[Errno 11] Resource temporarily unavailable")
    os.close(writing)
    assert os.read(reading, 1) == b""  # whoever waits for it sees that nobody is there
    os.close(reading)


def test_a_child_of_this_process_leaves_the_server_alone(asked):
    process = asked.begin()
    (server,) = server_pids()
    if (pid := os.fork()) == 0:
        os._exit(0 if server_pids() == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert server_pids() == [server]
    assert asked.ask(process, os.getpid) == process.pid


def test_it_ends_with_its_parent():
    script = """
import os
from intune.pipelines.executors.fork_server import server_pids
from intune.pipelines.executors.process import Process, _Fresh
processes = [Process() for _ in range(2)]
for process in processes:
    process.prepare("any", b"\\x80\\x04N.")
print(*server_pids(), *(process.pid for process in processes), flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 3
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_programs_that_a_function_starts_inherit_nothing_of_what_is_shared():
    def function(block):
        descriptors = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        return {"inherited": np.array(descriptors.count("memfd") + descriptors.count("socket"))}

    pool = ProcessPool([stage := Map(function=function, workers="process", name="any")])
    try:
        for _ in range(2):
            assert pool(stage, {"x": np.zeros(1000)})["inherited"] == 0
    finally:
        pool.close()


def test_how_one_ended_is_told_where_the_script_ignores_how_its_children_end(asked):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = asked.begin()
    finally:
        signal.signal(signal.SIGCHLD, before)
    process.kill()
    assert process.end(60.0) == "was killed by SIGKILL, as the system does when memory runs out"


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal"])
def test_there_is_none_where_the_system_lacks_what_it_takes(call, monkeypatch):
    assert fork_server._is_available()
    monkeypatch.setattr(os if call == "pidfd_open" else signal, call, lacking)
    assert not fork_server._is_available()


def lacking(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_a_server_a_process_is_a_fresh_interpreter(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(fork_server, "available", False)
    process = asked.begin()
    assert isinstance(process._process, _Fresh)
    assert server_pids() == []
    assert asked.ask(process, os.getpid) == process.pid
    Path(tmp_path, "still").touch()
    process.kill()
    assert process.end(5.0) == "was killed by SIGKILL, as the system does when memory runs out"
