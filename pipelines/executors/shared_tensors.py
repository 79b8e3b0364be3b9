"""Tensors in shared memory, handed to another process of this machine as the memory itself and not as a copy.

What a trainer writes into such a tensor (the epoch, for workers that persist) is seen by a fork of it, and so has to
be seen by a fresh interpreter. The other process opens the memory by the file descriptor that this one has of it, of
which it needs to know the number only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def memory_of(value: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """How a tensor in shared memory is made again in another process, as pickle wants to know it; None where it is no
    such tensor or only its values can travel.

    It can be made again as long as it is alive in this process.
    """
    torch = sys.modules.get("torch")  # importing it is left to who needs it
    if torch is None or type(value) is not torch.Tensor:
        return None
    if value.device.type != "cpu" or value.layout is not torch.strided or value.requires_grad:
        return None
    if not value.is_shared() or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return None
    storage = value.untyped_storage()
    if not storage.nbytes() or storage.filename is not None:  # it lies in a file of the user's
        return None
    descriptor, size = storage._share_fd_cpu_()
    path = f"/proc/{os.getpid()}/fd/{descriptor}"
    try:
        identity = _identity(path)
    except OSError:  # not on Linux
        return None
    place = (value.storage_offset(), tuple(value.shape), value.stride())
    return _mapped, (path, identity, size, value.dtype, *place)


def _mapped(
    path: str,
    identity: tuple[int, int],
    size: int,
    dtype: Any,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> Any:
    import torch

    if _identity(path) != identity:
        raise OSError(f"{path} is another file by now: the tensor in shared memory is gone")
    storage: Any = torch.UntypedStorage.from_file(path, True, size)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
