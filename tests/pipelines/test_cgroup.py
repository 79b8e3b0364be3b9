"""Parsing of control groups over made-up /proc and /sys trees, and one real group where that is possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines import cgroup
from intune.pipelines.cgroup import UNLIMITED, Limits, MemoryGauge, read_limits

GIB = 1 << 30
UNLIMITED_V1 = "9223372036854771712"
V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
"""
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def tree(root: Path, files: Mapping[str, str | int]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n" if isinstance(content, int) else content)
    return root


def v1(folder: str, limit: str | int, usage: int = 0, inactive: int = 0) -> dict[str, str | int]:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": f"cache 1\ninactive_file 7\ntotal_cache 9\ntotal_inactive_file {inactive}\n",
    }


def v2(folder: str, limit: str | int, usage: int = 0, inactive: int = 0) -> dict[str, str | int]:
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": usage,
        f"{folder}/memory.stat": f"anon 5\nfile 6\ninactive_file {inactive}\n",
    }


def test_v1_counts_reclaimable_file_pages_as_free(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "4:memory:/job\n", "proc/self/mountinfo": V1_MOUNTS})
    tree(tmp_path, v1("sys/fs/cgroup/memory/job", 4 * GIB, usage=3 * GIB, inactive=2 * GIB))
    assert read_limits(tmp_path) == Limits(memory=4 * GIB, memory_left=3 * GIB)


def test_v2_counts_reclaimable_file_pages_as_free(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, v2("sys/fs/cgroup/job", 4 * GIB, usage=3 * GIB, inactive=2 * GIB))
    assert read_limits(tmp_path) == Limits(memory=4 * GIB, memory_left=3 * GIB)


def test_v1_unlimited_is_no_limit(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "4:memory:/job\n", "proc/self/mountinfo": V1_MOUNTS})
    tree(tmp_path, v1("sys/fs/cgroup/memory/job", UNLIMITED_V1, usage=GIB))
    assert read_limits(tmp_path) == Limits()


def test_v2_max_is_no_limit_and_high_is_one(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, v2("sys/fs/cgroup/job", "max\n", usage=GIB))
    assert read_limits(tmp_path) == Limits()
    tree(tmp_path, {"sys/fs/cgroup/job/memory.high": 3 * GIB})
    assert read_limits(tmp_path) == Limits(memory=3 * GIB, memory_left=2 * GIB)


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_ancestor_wins(tmp_path: Path, version: int) -> None:
    """A slice above the job is smaller, and its other jobs use most of it."""
    make, top = (v1, "sys/fs/cgroup/memory") if version == 1 else (v2, "sys/fs/cgroup")
    line = "4:memory:/slice/job/step\n" if version == 1 else "0::/slice/job/step\n"
    tree(tmp_path, {"proc/self/cgroup": line, "proc/self/mountinfo": V1_MOUNTS if version == 1 else V2_MOUNT})
    tree(tmp_path, make(f"{top}/slice/job/step", 16 * GIB, usage=GIB))
    tree(tmp_path, make(f"{top}/slice/job", 6 * GIB, usage=GIB))
    tree(tmp_path, make(f"{top}/slice", 8 * GIB, usage=7 * GIB))
    assert read_limits(tmp_path) == Limits(memory=6 * GIB, memory_left=GIB)


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, v2("sys/fs/cgroup/job", GIB, usage=2 * GIB))
    assert read_limits(tmp_path) == Limits(memory=GIB, memory_left=0)


def test_hybrid_reads_each_controller_where_it_is(tmp_path: Path) -> None:
    """Memory and CPU in v1, an empty v2 hierarchy beside them: systemd's hybrid layout."""
    mounts = V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    groups = "9:name=systemd:/\n4:memory:/api/job\n2:cpu,cpuacct:/api\n0::/\n"
    tree(tmp_path, {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts})
    tree(tmp_path, {"sys/fs/cgroup/unified/cgroup.procs": "1\n"})
    tree(tmp_path, v1("sys/fs/cgroup/memory/api/job", 2 * GIB))
    tree(
        tmp_path,
        {
            "sys/fs/cgroup/cpu,cpuacct/api/cpu.cfs_quota_us": 250_000,
            "sys/fs/cgroup/cpu,cpuacct/api/cpu.cfs_period_us": 100_000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100_000,
        },
    )
    assert read_limits(tmp_path) == Limits(memory=2 * GIB, memory_left=2 * GIB, cpus=2.5)
    memory = [(version, folder) for name, version, folder in cgroup.groups(tmp_path) if name == "memory"]
    assert memory[0] == (1, tmp_path / "sys/fs/cgroup/memory/api/job")


def test_hybrid_with_memory_in_v2(tmp_path: Path) -> None:
    mounts = V1_MOUNTS.replace(
        "memory rw,relatime shared:5 - cgroup cgroup rw,memory", "pids rw - cgroup c rw,pids"
    )
    mounts += "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    tree(tmp_path, {"proc/self/cgroup": "2:cpu,cpuacct:/a\n0::/a\n", "proc/self/mountinfo": mounts})
    tree(tmp_path, v2("sys/fs/cgroup/unified/a", 5 * GIB))
    assert read_limits(tmp_path).memory == 5 * GIB


def test_v2_cpu_quota_of_the_tightest_level(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/slice/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, {"sys/fs/cgroup/slice/job/cpu.max": "max 100000\n"})
    assert read_limits(tmp_path).cpus is None
    tree(tmp_path, {"sys/fs/cgroup/slice/cpu.max": "150000 100000\n"})
    assert read_limits(tmp_path).cpus == 1.5


@pytest.mark.parametrize(
    ("shown", "path"),
    [
        ("/docker/abc", "/docker/abc"),  # the host's path, of which only the container's part is mounted
        ("/", "/"),  # a cgroup namespace
        ("/", "/docker/abc"),  # the host's path, but the mount shows the container's group as its root
        ("/../..", "/../../other"),  # moved out of its namespace
    ],
)
def test_in_a_container_the_mount_point_is_the_group(tmp_path: Path, shown: str, path: str) -> None:
    mount = f"30 23 0:26 {shown} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    tree(tmp_path, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mount})
    tree(tmp_path, v2("sys/fs/cgroup", 3 * GIB, usage=GIB))
    tree(tmp_path, v2("other", GIB))
    assert read_limits(tmp_path) == Limits(memory=3 * GIB, memory_left=2 * GIB)


def test_a_group_below_the_container_is_read_too(tmp_path: Path) -> None:
    mount = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup cgroup rw,memory\n"
    tree(tmp_path, {"proc/self/cgroup": "4:memory:/docker/abc/job\n", "proc/self/mountinfo": mount})
    tree(tmp_path, v1("sys/fs/cgroup", 3 * GIB))
    tree(tmp_path, v1("sys/fs/cgroup/job", 2 * GIB))
    assert read_limits(tmp_path).memory == 2 * GIB


def test_blanks_and_colons_in_a_group_name(tmp_path: Path) -> None:
    mount = "30 23 0:26 / /sys/fs/my\\040groups rw - cgroup2 cgroup2 rw\n"
    tree(tmp_path, {"proc/self/cgroup": "0::/user:1/my job\n", "proc/self/mountinfo": mount})
    tree(tmp_path, v2("sys/fs/my groups/user:1/my job", 2 * GIB))
    assert read_limits(tmp_path).memory == 2 * GIB


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()
    assert not list(cgroup.groups(tmp_path))


@pytest.mark.parametrize("content", ["", "\n", "lots\n", "-1\n", "1e9\n", "\x00\xff", "12 34 56\n", "٣x"])
@pytest.mark.parametrize("name", ["memory.max", "memory.high", "cpu.max"])
def test_what_is_no_limit_is_ignored(tmp_path: Path, name: str, content: str) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, {f"sys/fs/cgroup/job/{name}": content})
    assert read_limits(tmp_path) == Limits()


def test_unreadable_usage_counts_as_none_used(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, {"sys/fs/cgroup/job/memory.max": GIB, "sys/fs/cgroup/job/memory.stat": "garbage\n\n x"})
    (tmp_path / "sys/fs/cgroup/job/memory.current").mkdir()
    assert read_limits(tmp_path) == Limits(memory=GIB, memory_left=GIB)


@given(
    cgroup=st.text(st.sampled_from("0:/,.amemory cpu\n"), max_size=60),
    mountinfo=st.text(st.sampled_from("0:/ -cgroup2rw,mey\\0\n"), max_size=120),
)
def test_garbage_in_proc_never_raises(
    tmp_path_factory: pytest.TempPathFactory, cgroup: str, mountinfo: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "garbage"
    tree(root, {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo})
    limits = read_limits(root)
    assert limits.memory is None or 0 <= limits.memory < UNLIMITED


def test_the_gauge_counts_no_file_pages_and_takes_the_tightest_group(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "4:memory:/job\n", "proc/self/mountinfo": V1_MOUNTS})
    tree(tmp_path, {"proc/meminfo": "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n"})
    tree(tmp_path, v1("sys/fs/cgroup/memory", 8 * GIB, usage=7 * GIB))
    tree(tmp_path, v1("sys/fs/cgroup/memory/job", 4 * GIB, usage=3 * GIB))
    gauge = MemoryGauge(tmp_path)
    assert gauge.read() == (4 * GIB, 1 * GIB)
    stat = f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file {GIB // 2}\n"
    tree(tmp_path, {"sys/fs/cgroup/memory/job/memory.stat": stat})
    assert gauge.read() == (8 * GIB, 1 * GIB), "the group above has less left now"
    tree(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1})
    assert gauge.read() == (4 * GIB, 2 * GIB + GIB // 2)
    tree(tmp_path, {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n"})
    assert gauge.read() == (8 * GIB, 1 * GIB), "the machine itself has less left"


def test_the_gauge_knows_where_version_2_throttles_and_that_nothing_is_known(tmp_path: Path) -> None:
    assert MemoryGauge(tmp_path).read() is None
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": V2_MOUNT})
    tree(tmp_path, v2("sys/fs/cgroup/job", "max\n", usage=GIB))
    assert MemoryGauge(tmp_path).read() is None
    tree(tmp_path, {"sys/fs/cgroup/job/memory.high": 2 * GIB, "sys/fs/cgroup/job/memory.max": 3 * GIB})
    assert MemoryGauge(tmp_path).read() == (2 * GIB, GIB)
    stat = f"anon 5\nactive_file {GIB // 4}\nslab_reclaimable {GIB // 4}\nslab_unreclaimable 9\nslab {GIB}\n"
    tree(tmp_path, {"sys/fs/cgroup/job/memory.stat": stat})
    assert MemoryGauge(tmp_path).read() == (2 * GIB, GIB + GIB // 2), "names of files are dropped, too"


def printed_by(code: str, *arguments: str) -> str:
    """What a Python process prints; it must not be killed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


CHILD = """
import json, os, sys
with open(sys.argv[1], "w") as procs:
    procs.write(str(os.getpid()))
from intune.pipelines.budget import Budget, Usable
from intune.pipelines.errors import ConfigError
usable = Usable.detect()
try:
    Budget.detect(memory=usable.memory + 1)
    refused = False
except ConfigError:
    refused = True
print(json.dumps([usable.memory, usable.memory_left, Budget.detect().memory, refused]))
"""


@pytest.fixture
def limited_group() -> Iterator[tuple[Path, int]]:
    """A real group of its own below this process's, limited to 512 MiB: (its folder, the limit)."""
    found = [(version, folder) for name, version, folder in cgroup.groups(Path("/")) if name == "memory"]
    if not found:
        pytest.skip("no memory controller here")
    version, parent = found[0]
    folder, limit = parent / f"intune-test-{os.getpid()}", 512 << 20
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        name = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        if not name.exists():
            pytest.skip("the memory controller is not handed down to groups below this one")
        name.write_text(str(limit))
        yield folder, limit
    finally:
        folder.rmdir()


@pytest.mark.cgroup
def test_a_child_in_a_limited_group_sees_its_limit(limited_group: tuple[Path, int]) -> None:
    folder, limit = limited_group
    printed = printed_by(CHILD, str(folder / "cgroup.procs"))
    memory, left, budget, refused = json.loads(printed)
    assert memory == limit
    assert 0 < left < limit, "the child's own pages are not free"
    assert abs(budget - left // 4) < 16 << 20, "a quarter of what was free a moment later"
    assert refused


LOADING_CHILD = """
import json, os, sys, time
folder, data, budget, slack = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import torch
from intune.pipelines import Budget, Pipeline
loader = Pipeline.from_parquet(data).batch(8192).map(lambda block: {n: c + 1 for n, c in block.items()}).loader(
    executor="threads", budget=Budget(cpus=2, memory=budget), allocation={"load": 8, "transform": 8}
)
open(f"{folder}/cgroup.procs", "w").write(str(os.getpid()))
v1 = os.path.exists(f"{folder}/memory.limit_in_bytes")
used = next(iter(open("/proc/self/statm"))).split()
limit = int(used[1]) * 4096 + budget + slack
open(f"{folder}/memory." + ("limit_in_bytes" if v1 else "max"), "w").write(str(limit))
rows = 0
for index, batch in enumerate(loader):
    if index == 2:  # the trainer takes its time: everything that may be made ahead is
        held = -1
        while held != loader.stats().memory_held:
            held = loader.stats().memory_held
            time.sleep(0.2)
    rows += len(batch["c0"])
print(json.dumps([rows, loader.stats().memory_peak]))
loader.close()
"""


@pytest.mark.cgroup
def test_a_run_under_a_limit_close_to_its_budget_is_not_killed(
    limited_group: tuple[Path, int], tmp_path: Path
) -> None:
    folder, _ = limited_group
    rows, group, columns = 700_000, 35_000, 24
    values = np.random.default_rng(0).integers(0, 100, rows)
    table = pa.table({f"c{i}": values for i in range(columns)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=group)
    assert table.nbytes > 128 << 20
    budget, slack = 60 << 20, 40 << 20
    printed = printed_by(LOADING_CHILD, str(folder), str(tmp_path), str(budget), str(slack))
    seen, peak = json.loads(printed)
    assert seen == rows
    assert 0.5 * budget < peak <= budget + group * columns * 8


GROWING_CHILD = """
import os, sys, time
folder, data = sys.argv[1:3]
open(f"{folder}/cgroup.procs", "w").write(str(os.getpid()))
import numpy as np
from intune.pipelines import Budget, Pipeline
def work(block):
    scratch = np.ones(3_000_000)  # 24 MB that no budget counts
    time.sleep(0.05)
    return {n: c + scratch[0] for n, c in block.items()}
loader = Pipeline.from_parquet(data).batch(4096).map(work).loader(
    executor="threads", budget=Budget(cpus=2, memory=64 << 20), allocation={"load": 1, "transform": 1}
)
v1 = os.path.exists(f"{folder}/memory.limit_in_bytes")
rows = 0
for index, batch in enumerate(loader):
    rows += len(batch["c0"])
    if index == 4:
        limit = int(open("/proc/self/statm").read().split()[1]) * 4096 + (300 << 20)
        open(f"{folder}/memory." + ("limit_in_bytes" if v1 else "max"), "w").write(str(limit))
        loader.resize({"transform": 32})  # 768 MB at once, were they all begun
print(rows)
loader.close()
"""


@pytest.mark.cgroup
def test_memory_that_no_budget_counts_is_not_taken_to_the_last_byte(
    limited_group: tuple[Path, int], tmp_path: Path
) -> None:
    folder, _ = limited_group
    rows = 400_000
    pq.write_table(
        pa.table({"c0": np.random.default_rng(0).random(rows)}), tmp_path / "x.parquet", row_group_size=50_000
    )
    printed = printed_by(GROWING_CHILD, str(folder), str(tmp_path))
    assert int(printed) == rows
