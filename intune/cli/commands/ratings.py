"""Data sets of interactions between users and items."""

from intune.cli.command import Command

COMMANDS = {
    "data movielens": Command(
        "Convert MovieLens to Parquet: ratings, sessions, series, graph.", "intune.cli.data_ratings:movielens"
    ),
    "data amazon-reviews": Command(
        "Convert Amazon's public reviews to the same tables.", "intune.cli.data_ratings:amazon_reviews"
    ),
}
