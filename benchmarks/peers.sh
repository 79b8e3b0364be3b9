#!/bin/sh
# The rivals' environment, .peers: torch first and alone, so that no other package pulls in another build of it.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
torch="${TORCH:-torch==2.13.0}"
[ -x .peers/bin/python ] || "$python" -m venv .peers
.peers/bin/python -m pip install --quiet "$torch"
.peers/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
.peers/bin/python -m pip list --format=freeze | grep -E '^(torch|numpy|pyarrow|ray|spdl.core|tensorflow.cpu|grain)=='
