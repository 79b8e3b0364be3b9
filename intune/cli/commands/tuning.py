"""Tuning real jobs."""

from intune.cli.command import Command

COMMANDS = {
    "report": Command("Make a page of what a tuner did.", "intune.cli.report:report"),
}
