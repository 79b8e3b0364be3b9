"""Forecasts of what will trend, and a market to try them on."""

from intune.cli.command import Command

COMMANDS = {
    "data market": Command("Simulate a market whose trends are known.", "intune.cli.data_market:market"),
    "train trendrec": Command(
        "Forecast which items will trend (TrendRec and baselines).", "intune.cli.train_trends:trendrec"
    ),
}
