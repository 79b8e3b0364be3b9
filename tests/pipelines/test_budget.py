"""Budgets: what is detected, what is refused, and bytes as people write them."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines.budget import DEFAULT_SHARE, LEAST_MEMORY, Budget, Usable, format_bytes, parse_bytes
from intune.pipelines.errors import ConfigError

GIB = 1 << 30
MACHINE = Usable(cpus=8, memory=32 * GIB, memory_left=20 * GIB)


def fake_ray(
    *, cpus: float = 4, memory: int = 0, store: int = 0, nodes: int = 1, connected: bool = True
) -> Any:
    resources = {"CPU": cpus, "memory": float(memory), "object_store_memory": float(store)}
    alive = [{"Alive": True}] * nodes + [{"Alive": False}]
    return SimpleNamespace(
        is_initialized=lambda: connected,
        cluster_resources=lambda: {name: value for name, value in resources.items() if value},
        nodes=lambda: alive,
    )


def detect(
    root: Path, *, limit: int | None = None, used: int = 0, quota: str = "max", **options: Any
) -> Usable:
    """What a job sees on a machine of 64 GiB, 40 of them free, and 16 CPUs."""
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True, exist_ok=True)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text("max" if limit is None else str(limit))
    (group / "memory.current").write_text(str(used))
    (group / "cpu.max").write_text(f"{quota} 100000\n")
    options = {"modules": {}, "affinity": lambda: 16, "machine": lambda: (64 * GIB, 40 * GIB)} | options
    return Usable.detect(root=root, **options)


def test_without_limits_it_is_affinity_and_free_memory(tmp_path: Path) -> None:
    assert detect(tmp_path) == Usable(cpus=16, memory=64 * GIB, memory_left=40 * GIB)


def test_the_control_group_counts_not_the_machine(tmp_path: Path) -> None:
    usable = detect(tmp_path, limit=8 * GIB, used=2 * GIB, quota="350000")
    assert usable == Usable(cpus=3, memory=8 * GIB, memory_left=6 * GIB)


def test_a_group_larger_than_the_machine_does_not_help(tmp_path: Path) -> None:
    usable = detect(tmp_path, limit=100 * GIB, quota="6400000")
    assert usable == Usable(cpus=16, memory=64 * GIB, memory_left=40 * GIB)


def test_less_than_one_cpu_is_one(tmp_path: Path) -> None:
    assert detect(tmp_path, quota="20000").cpus == 1


def test_affinity_caps_the_quota(tmp_path: Path) -> None:
    assert detect(tmp_path, quota="800000", affinity=lambda: 2).cpus == 2


@pytest.mark.parametrize(
    ("ray", "cpus", "left"),
    [
        (fake_ray(cpus=4), 4, 40),
        (fake_ray(cpus=64), 16, 40),  # Ray believes what it is told; the machine has 16
        (fake_ray(cpus=4, memory=6 * GIB, store=3 * GIB), 4, 9),
        (fake_ray(cpus=96, memory=6 * GIB, nodes=3), 96, 40),  # a cluster: its CPUs, this machine's memory
        (fake_ray(cpus=4, connected=False), 16, 40),
        (fake_ray(cpus=0.5), 16, 40),
        (SimpleNamespace(), 16, 40),  # something else called ray, or one half imported
    ],
)
def test_a_connected_ray_counts(tmp_path: Path, ray: Any, cpus: int, left: int) -> None:
    usable = detect(tmp_path, modules={"ray": ray})
    assert (usable.cpus, usable.memory_left) == (cpus, left * GIB)


def test_the_system_itself_can_be_read() -> None:
    usable = Usable.detect(modules={})
    assert usable.cpus >= 1
    assert 0 < usable.memory_left <= usable.memory


def test_by_default_a_share_of_what_is_free() -> None:
    assert Budget.detect(usable=MACHINE) == Budget(cpus=8, memory=int(20 * GIB * DEFAULT_SHARE))
    assert Budget.detect(share=0.5, usable=MACHINE).memory == 10 * GIB


def test_hardly_any_free_memory_still_gives_a_budget() -> None:
    usable = Usable(cpus=1, memory=GIB, memory_left=0)
    with pytest.raises(ConfigError, match="share"):
        Budget.detect(share=0, usable=usable)
    assert Budget.detect(usable=usable).memory == LEAST_MEMORY


def test_what_is_given_is_taken() -> None:
    assert Budget.detect(cpus=3, memory="1.5GiB", usable=MACHINE) == Budget(cpus=3, memory=3 * GIB // 2)


def test_more_than_the_job_may_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`memory`=33\.0 GiB is more than the 32\.0 GiB this job may hold"):
        Budget.detect(memory="33GiB", usable=MACHINE)
    with pytest.raises(ConfigError, match="would be killed"):
        Budget(cpus=1, memory=33 * GIB).check(MACHINE)


def test_more_than_is_free_now_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="intune"):
        Budget.detect(memory=20 * GIB, cpus=8, usable=MACHINE)
        assert not caplog.records
        Budget.detect(memory="24GiB", cpus=9, usable=MACHINE)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "24.0 GiB is more than the 20.0 GiB free" in caplog.text
    assert "`cpus`=9, but this job may use 8" in caplog.text


def test_numpys_whole_numbers_count_too() -> None:
    budget = Budget(cpus=np.int64(3), memory=np.int32(1 << 24))  # type: ignore[arg-type]
    assert (budget.cpus, budget.memory) == (3, 1 << 24)
    assert type(budget.cpus) is type(budget.memory) is int


def test_a_budget_is_frozen_and_keyword_only() -> None:
    budget = Budget(cpus=1, memory=GIB)
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.cpus = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Budget(1, GIB)  # type: ignore[misc]


@pytest.mark.parametrize("cpus", [0, -1, 1.5, True, None, "2", math.nan])
def test_nonsense_cpus(cpus: Any) -> None:
    with pytest.raises(ConfigError, match=r"`cpus`=.*must be a whole number, 1 or more; give"):
        Budget(cpus=cpus, memory=GIB)


@pytest.mark.parametrize("memory", [0, -1, LEAST_MEMORY - 1, 24, 1.5 * GIB, True, None, "24GiB", math.inf])
def test_nonsense_memory(memory: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"`memory`=.*must be a whole number, 1048576 or more; these are bytes"
    ):
        Budget(cpus=1, memory=memory)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, True, "half", None])
def test_nonsense_share(share: Any) -> None:
    with pytest.raises(ConfigError, match="`share`="):
        Budget.detect(share=share, usable=MACHINE)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 24 << 30),
        ("24gib", 24 << 30),
        ("24 Gi", 24 << 30),
        ("512MB", 512 * 1000**2),
        ("512M", 512 * 1000**2),
        (" 1.5 KiB ", 1536),
        (".5k", 500),
        ("7", 7),
        ("7B", 7),
        ("9007199254740993", 2**53 + 1),
        ("2TiB", 2 << 40),
        ("1PB", 10**15),
        (7, 7),
        (7.9, 7),
        (24e9, 24 * 10**9),
    ],
)
def test_bytes_as_people_write_them(text: Any, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "value",
    ["", "lots", "-1", "-1GiB", "0", "0.0GiB", "0.4", "nan", "inf", "1e9", "1 2", "GiB", "1iB", "1GiBs", "0x10",
     "1,5GB", 0, -5, 0.0, 0.5, math.nan, math.inf, -math.inf, True, False, None, [], b"1GiB", 1j],
)  # fmt: skip
def test_no_amount_of_memory(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(value, "cache")
    assert f"`cache`={value!r}" in str(caught.value)
    assert "'24GiB'" in str(caught.value)


@given(st.integers(1, 1 << 55))
def test_formatted_bytes_read_back_within_their_digits(count: int) -> None:
    text = format_bytes(count)
    assert len(text) <= len("1.00 GiB")
    assert parse_bytes(text) == pytest.approx(count, rel=0.006)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1023.7, "1.00 KiB"), (1536, "1.50 KiB"), (10 << 20, "10.0 MiB"),
     (100 << 30, "100 GiB"), ((1 << 30) - 1, "1.00 GiB"), (-1536, "-1.50 KiB"), (1 << 60, "1024 PiB")],
)  # fmt: skip
def test_bytes_for_a_person(count: float, text: str) -> None:
    assert format_bytes(count) == text
