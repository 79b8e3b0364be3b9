from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from intune.errors import ConfigError, CorruptError, NotFoundError, StorageError
from intune.workloads.training.checkpoint import CheckpointStore, read_checkpoint


def state(step: int) -> dict[str, object]:
    return {
        "step": step,
        "model": {"weight": torch.arange(6.0).reshape(2, 3) + step},
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}], "state": {}},
        "loader": {"epoch": 1, "ahead": [], "shuffle": None, "name": "x", "drop": True},
    }


def in_a_child_that_is_killed(work: Callable[[], None]) -> None:
    """Run `work` in a fork; it must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)  # reached only when nothing has killed it
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_me(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    path = CheckpointStore(directory=tmp_path / "new" / "folder").save(7, state(7))
    read = read_checkpoint(path)
    assert torch.equal(read["model"].pop("weight"), state(7)["model"]["weight"])  # type: ignore[index]
    expected = state(7)
    expected["model"] = {}
    assert read == expected


def test_only_the_latest_are_kept_and_the_latest_is_by_step(tmp_path: Path) -> None:
    store = CheckpointStore(directory=tmp_path, keep=2)
    assert store.latest() is None
    for step in (9, 10, 11, 100):
        store.save(step, state(step))
    assert [path.name for path in store.paths()] == ["step-000000000011.pt", "step-000000000100.pt"]
    latest = store.latest()
    assert latest is not None
    assert read_checkpoint(latest)["step"] == 100


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "step-1.pt", "best.pt"):
        (tmp_path / name).write_text("mine")
    store = CheckpointStore(directory=tmp_path, keep=1)
    for step in range(3):
        store.save(step, state(step))
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.txt",
        "step-1.pt",
        "best.pt",
        "step-000000000002.pt",
    }


@pytest.mark.parametrize("moment", ["while writing", "before the sync", "before the name", "before deleting"])
def test_a_kill_while_saving_leaves_whole_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    store = CheckpointStore(directory=tmp_path, keep=1)
    store.save(1, state(1))

    def write_half_and_die(_content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
        kill_me()

    def work() -> None:
        if moment == "while writing":
            monkeypatch.setattr(torch, "save", write_half_and_die)
        elif moment == "before the sync":
            monkeypatch.setattr(os, "fsync", kill_me)
        elif moment == "before the name":
            monkeypatch.setattr(Path, "replace", kill_me)
        else:
            monkeypatch.setattr(Path, "unlink", kill_me)
        store.save(2, state(2))

    in_a_child_that_is_killed(work)
    for path in store.paths():
        assert read_checkpoint(path)["step"] in (1, 2)
    latest = store.latest()
    assert latest is not None
    assert read_checkpoint(latest)["step"] == (2 if moment == "before deleting" else 1)
    store.save(3, state(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003.pt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")]
)
def test_a_full_disk_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = CheckpointStore(directory=tmp_path, keep=1)
    store.save(1, state(1))

    def fail(_content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(StorageError, match=r"step-000000000002.pt could not be written .* free some space"):
        store.save(2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.pt"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        CheckpointStore(directory=tmp_path / "file").save(1, state(1))


@pytest.mark.parametrize("length", [0, 10, 200, -1])
def test_a_file_cut_short_is_reported_as_corrupt(tmp_path: Path, length: int) -> None:
    path = CheckpointStore(directory=tmp_path).save(1, state(1))
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(CorruptError, match=r"step-000000000001.pt cannot be read .* delete it"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_larger_file_cut_short_is_reported_as_corrupt(tmp_path: Path, share: float) -> None:
    path = CheckpointStore(directory=tmp_path).save(1, {"weight": torch.zeros(20_000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptError, match=r"step-000000000001.pt cannot be read .* delete it"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"hello", b"hello\n" * 99, *(bytes([k]) * 300 for k in range(0, 256, 5))]
)
def test_bytes_that_are_no_checkpoint_are_reported_as_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step-000000000001.pt"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match="cannot be read"):
        read_checkpoint(path)


def test_random_bytes_are_reported_as_corrupt(tmp_path: Path) -> None:
    path, rng = tmp_path / "step-000000000001.pt", np.random.default_rng(0)
    for _ in range(300):
        path.write_bytes(rng.bytes(300))
        with pytest.raises(CorruptError, match="cannot be read"):
            read_checkpoint(path)


def test_a_folder_of_that_name_is_reported_as_corrupt(tmp_path: Path) -> None:
    (tmp_path / "step-000000000001.pt").mkdir()
    with pytest.raises(CorruptError, match="cannot be read"):
        read_checkpoint(tmp_path / "step-000000000001.pt")


def test_a_file_that_may_not_be_read_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(StorageError, match="may not be read"):
        read_checkpoint(tmp_path / "step-000000000001.pt")


def test_a_folder_that_cannot_be_written_to_is_known_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CheckpointStore(directory=tmp_path / "new" / "folder").make_directory()
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"no checkpoints can be kept in .*file"):
        CheckpointStore(directory=tmp_path / "file").make_directory()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="may not be written to"):
        CheckpointStore(directory=tmp_path).make_directory()


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "step-000000000001.pt")


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_reading_runs_no_code_from_the_file(tmp_path: Path) -> None:
    path, proof = tmp_path / "step-000000000001.pt", tmp_path / "proof"
    torch.save({"model": Bomb(proof)}, path)
    with pytest.raises(CorruptError):
        read_checkpoint(path)
    assert not proof.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert proof.exists()  # it would have


def test_a_file_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CorruptError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"loader": {"x": [0, np.int64(3)]}}, r"state.loader.x\[1\]` is a int64"),
        ({"a": np.zeros(2)}, "state.a` is a ndarray"),
        ({"a": {"b": {1, 2}}}, "state.a.b` is a set"),
        ({"a": {(1, 2): 3}}, r"state.a` has the key \(1, 2\)"),
        ({"a": Path("x")}, "state.a` is a PosixPath"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, content: dict, place: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ConfigError, match=place):
        CheckpointStore(directory=tmp_path).save(1, content)
    assert not list(tmp_path.iterdir())


def test_keeping_none_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`keep`"):
        CheckpointStore(directory=tmp_path, keep=0)
