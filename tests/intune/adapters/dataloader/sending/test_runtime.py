"""What the trainer's process has set, as it is applied in a worker process."""

import dataclasses

import torch

from intune.adapters.dataloader.sending.runtime import Runtime


def test_what_is_as_it_has_to_be_is_not_set_again(monkeypatch):
    """`use_deterministic_algorithms` imports torch's compiler, which every process took 1.5 s for."""
    set_to = []
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda mode, warn_only: set_to.append((mode, warn_only))
    )
    runtime = Runtime.now()
    runtime.apply()
    assert not set_to
    dataclasses.replace(runtime, deterministic=(True, True)).apply()
    assert set_to == [(True, True)]
