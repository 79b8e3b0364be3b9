"""Agents: judged on simulated jobs, and trained there."""

from intune.cli.command import Command

COMMANDS = {
    "simulate": Command("Compare agents on simulated jobs.", "intune.cli.simulate:simulate"),
    "pretrain": Command("Make a learning agent's weights again.", "intune.cli.pretrain:pretrain"),
}
