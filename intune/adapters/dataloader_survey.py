"""What of a DataLoader can be sent to processes, and how large it is; looked through once, which takes a dataset of
many Python objects seconds, unless they lie in long lists of plain things."""

from __future__ import annotations

from functools import cached_property

from intune.adapters.dataloader_settings import LoaderSettings
from intune.adapters.pickled_size import structure_bytes


class Survey:
    """Of a DataLoader as it is when it is first asked.

    Args:
        settings: of the DataLoader.
        whole: look through long lists too, of which a sample else tells.
    """

    def __init__(self, settings: LoaderSettings, *, whole: bool = False) -> None:
        self._settings = settings
        self._whole = whole

    @cached_property
    def size(self) -> int | None:
        """Bytes of the dataset, about; None if it cannot be sent."""
        return structure_bytes(self._settings.dataset, whole=self._whole)

    @cached_property
    def code(self) -> bool:
        """Whether `collate_fn` and `worker_init_fn` can be sent."""
        return structure_bytes((self._settings.collate_fn, self._settings.worker_init_fn)) is not None

    @property
    def sendable(self) -> bool:
        """Whether all of it can be sent."""
        return self.size is not None and self.code
