"""Recommenders of the next item of a session."""

from intune.cli.command import Command

COMMANDS = {
    "train bert4rec": Command("Train BERT4Rec on sessions.", "intune.cli.train_sequences:bert4rec"),
    "train sasrec": Command("Train SASRec on sessions.", "intune.cli.train_sequences:sasrec"),
    "train gru4rec": Command("Train GRU4Rec on sessions.", "intune.cli.train_sequences:gru4rec"),
    "train llm2bert4rec": Command(
        "Train BERT4Rec whose items start from their text.", "intune.cli.train_sequences:llm2bert4rec"
    ),
    "train llm-seq-sim": Command(
        "Recommend items whose text is like the session's.", "intune.cli.train_sequences:llm_seq_sim"
    ),
    "train llm-seq-prompt": Command(
        "Train a language model to write the next item.", "intune.cli.train_sequences:llm_seq_prompt"
    ),
    "train vsknn": Command("Recommend what similar sessions hold.", "intune.cli.train_sequences:vsknn"),
    "train popularity": Command("Recommend what is popular.", "intune.cli.train_sequences:popularity"),
}
