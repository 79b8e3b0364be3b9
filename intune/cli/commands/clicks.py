"""Click logs, and what is trained on them."""

from intune.cli.command import Command

COMMANDS = {
    "data synthetic": Command(
        "Write a Criteo-like data set with a known best AUC.", "intune.cli.data:synthetic"
    ),
    "data criteo": Command("Convert Criteo's click logs to Parquet.", "intune.cli.data:criteo"),
    "train dlrm": Command("Train DLRM on click logs.", "intune.cli.train_click:dlrm"),
    "train dcnv2": Command("Train DCN-V2 on click logs.", "intune.cli.train_click:dcnv2"),
    "train unified-embedding": Command(
        "Train an MLP over one table for all features.", "intune.cli.train_click:unified_embedding"
    ),
}
