"""Fleets of workers that run tasks."""
