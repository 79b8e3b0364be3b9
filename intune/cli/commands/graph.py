"""Models of users and items that are learnt from pairs."""

from intune.cli.command import Command

COMMANDS = {
    "train bpr-mf": Command("Train matrix factorisation with BPR.", "intune.cli.train_graph:bpr_mf"),
    "train lightgcn": Command("Train LightGCN.", "intune.cli.train_graph:lightgcn"),
    "train sheaf": Command("Train the sheaf network.", "intune.cli.train_graph:sheaf"),
    "train ans": Command("Train with augmented negative sampling.", "intune.cli.train_graph:ans"),
}
