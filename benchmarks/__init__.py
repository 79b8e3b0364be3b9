"""Benchmarks: our loader against the ones people use, each rival in its best configuration.

`python -m benchmarks.throughput --json FILE` is the one command; what it runs lives beside it, one idea a
file. Nothing here is part of the installed package.
"""
