"""Recommenders that embed users and items and learn from pairs, and the negatives they learn from."""
