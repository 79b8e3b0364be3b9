"""Loaders of others that become tunable: what `intune.tune` can drive beside this package's own pipelines."""

from intune.adapters.dataloader import TunableDataLoader

__all__ = ["TunableDataLoader"]
