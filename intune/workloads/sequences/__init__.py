"""Recommenders of a session's next item: trained on ids, neighbours of sessions, and language models."""
