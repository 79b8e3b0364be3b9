from __future__ import annotations

import pytest

from intune.pipelines import Budget
from intune.pipelines.errors import ConfigError
from intune.workloads.training.shares import shared


def test_memory_is_shared_and_cpus_are_not() -> None:
    training, evaluation = shared(Budget(cpus=3, memory=8 << 20), 3, 1)
    assert (training.memory, evaluation.memory) == (6 << 20, 2 << 20)
    assert training.cpus == evaluation.cpus == 3


def test_too_little_for_all_is_told_in_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"`memory`=1\.00 MiB is shared .* give 4\.00 MiB or more"):
        shared(Budget(cpus=1, memory=1 << 20), 3, 1)
