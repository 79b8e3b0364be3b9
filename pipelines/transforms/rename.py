"""Give columns other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Block, Column
from intune.pipelines.transforms.base import Transform, choose, freeze, require_free


@dataclass(frozen=True, kw_only=True)
class Rename(Transform):
    """Rename columns, all at once, so that two may swap their names; the order of the columns stays.

    Attributes:
        names: from old name to new name.
    """

    names: Mapping[str, str]

    def __post_init__(self) -> None:
        if not isinstance(self.names, Mapping) or not self.names:
            raise ConfigError(
                f"`names`={self.names!r} must map old names to new ones, such as {{'C1': 'user'}}"
            )
        for old, new in self.names.items():
            if not isinstance(old, str) or not isinstance(new, str) or not old or not new:
                raise ConfigError(f"`names` maps {old!r} to {new!r}; both must be strings that are not empty")
        if len(set(self.names.values())) < len(self.names):
            raise ConfigError(
                f"`names`={dict(self.names)!r} gives two columns one name; make the new names differ"
            )
        freeze(self, "names", dict(self.names))

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block under the new names."""
        kept = [name for name in block if name not in self.names]
        for old, new in self.names.items():
            if old not in block:
                choose(block, old, "Rename")
            require_free("Rename", new, kept)
        return {self.names.get(name, name): column for name, column in block.items()}
