"""Why a dataset cannot be sent to worker processes, and what to do about it."""

from __future__ import annotations

from intune.adapters.dataloader_settings import LoaderSettings
from intune.pipelines.errors import ConfigError


def refusal(error: Exception, settings: LoaderSettings) -> ConfigError:
    """What to raise where pickling raised `error`."""
    remedy = "keep locks, open files and connections out of them, and out of the variables of the script that they use"
    if "through inheritance" in str(error):  # as multiprocessing says of all that it shares
        remedy = (
            "in place of `multiprocessing.Value` or `Array` keep a tensor in shared memory, as "
            "`torch.tensor(0).share_memory_()` makes it"
        )
    # Several iterators, and `worker_init_fn`, are refused to threads.
    if not (settings.num_workers and (settings.iterable or settings.worker_init_fn is not None)):
        remedy = f"{remedy}, or use workers='thread'"
    return ConfigError(
        "`dataset`, `collate_fn` or `worker_init_fn` cannot be sent to a process "
        f"({type(error).__name__}: {error}); {remedy}"
    )
