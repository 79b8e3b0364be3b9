"""Simulated jobs made from real ones."""

from intune.cli.command import Command

COMMANDS = {
    "profile": Command(
        "Measure a pipeline for a minute and make a scenario of it.", "intune.cli.profile:profile"
    ),
}
