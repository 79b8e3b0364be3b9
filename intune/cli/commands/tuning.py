"""Tuning real jobs."""

from intune.cli.command import Command

COMMANDS = {
    "run": Command("Run a script with the DataLoaders it makes tuned.", "intune.cli.run:run"),
    "compare": Command("Compare agents on a real pipeline.", "intune.cli.compare:compare"),
    "report": Command("Make a page of what a tuner did.", "intune.cli.report:report"),
}
