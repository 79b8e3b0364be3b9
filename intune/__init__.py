"""InTune: an input pipeline for recommender training that is tuned while it runs."""
