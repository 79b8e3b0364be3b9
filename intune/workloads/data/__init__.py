"""Data sets for the bundled recommenders: a synthetic one with a planted teacher, and Criteo's own logs."""
