"""The bundled recommenders and their data."""
