from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.pipelines.allocation import MOST_SLOTS, Allocation
from intune.pipelines.errors import ConfigError

STAGES = ("load", "batch", "transform")


def test_a_shared_pool_gives_every_stage_all_its_slots() -> None:
    pool = Allocation.shared(3)
    assert pool.is_shared
    assert (pool.total, pool.of("load"), pool.as_dict()) == (3, 3, {"shared": 3})


def test_slots_per_stage_add_up() -> None:
    each = Allocation.per_stage({"load": 2, "batch": 1, "transform": 4})
    assert not each.is_shared
    assert (each.total, each.of("transform")) == (7, 4)
    assert each.as_dict() == {"load": 2, "batch": 1, "transform": 4}


@pytest.mark.parametrize("slots", [0, -1, 1.5, "2", None, True, MOST_SLOTS + 1, float("nan")])
def test_nonsensical_slots_are_refused(slots: Any) -> None:
    message = f"must be a whole number from 1 to {MOST_SLOTS}"
    with pytest.raises(ConfigError, match=f"slots of 'load'.*{message}"):
        Allocation.per_stage({"load": slots})
    with pytest.raises(ConfigError, match=f"slots of 'pool'.*{message}"):
        Allocation.shared(slots)


@pytest.mark.parametrize("memory", [0, -5, True, "4GiB", 1.5])
def test_nonsensical_memory_is_refused(memory: Any) -> None:
    with pytest.raises(ConfigError, match=r"`memory`=.* must be bytes above 0"):
        Allocation.shared(2, memory=memory)


def test_numbers_of_numpy_are_numbers() -> None:
    each = Allocation.per_stage({"load": np.int64(3)}, memory=np.int64(1000))  # type: ignore[dict-item, arg-type]
    assert each == Allocation.per_stage({"load": 3}, memory=1000)
    assert type(each.of("load")) is int


def test_no_stage_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="`slots` is empty"):
        Allocation.per_stage({})


def test_a_change_of_some_stages_leaves_the_others() -> None:
    each = Allocation.per_stage({"load": 2, "batch": 1, "transform": 4}, memory=1000)
    merged = each.merged({"transform": 5}, STAGES)
    assert merged.as_dict() == {"load": 2, "batch": 1, "transform": 5}
    assert merged.memory == 1000
    assert each.merged(Allocation.per_stage({"batch": 3}, memory=7), STAGES).memory == 7
    assert each.merged(Allocation.shared(9), STAGES).as_dict() == {"shared": 9}


def test_out_of_a_shared_pool_the_stages_not_named_get_its_slots_each() -> None:
    merged = Allocation.shared(3).merged({"load": 1}, STAGES)
    assert merged.as_dict() == {"load": 1, "batch": 3, "transform": 3}


@pytest.mark.parametrize("change", [{"lod": 1}, Allocation.per_stage({"lod": 1})])
def test_a_stage_that_is_not_there_is_refused_and_the_nearest_named(change: Any) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'lod'; the pipeline has load, .*did you mean 'load'\?"):
        Allocation.shared(3).merged(change, STAGES)


@pytest.mark.parametrize("change", [3, None, [("load", 1)], "load"])
def test_what_is_no_allocation_is_refused(change: Any) -> None:
    with pytest.raises(ConfigError, match="must be a mapping of stages to slots or an Allocation"):
        Allocation.shared(3).merged(change, STAGES)
