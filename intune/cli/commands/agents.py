"""Agents, judged on simulated jobs."""

from intune.cli.command import Command

COMMANDS = {
    "simulate": Command("Compare agents on simulated jobs.", "intune.cli.simulate:simulate"),
}
