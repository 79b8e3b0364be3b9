from __future__ import annotations

import pytest
import torch

from intune.errors import ConfigError
from intune.workloads.training.devices import check_device


def test_a_device_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_device("cpu")
    for name in ("foo", "cuda:x", "", "cuda:-1"):
        with pytest.raises(ConfigError, match=f"`device`='{name}' is unknown"):
            check_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device is available"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ConfigError, match="there are only 2"):
        check_device("cuda:2")
