"""A server that speaks S3, on loopback, in a process of its own: moto, from the extra ``s3``.

It keeps objects in memory and ends with its owner. Nothing leaves this machine.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import fs

from benchmarks.child import Child, serve

HOST = "127.0.0.1"
REGION = "us-east-1"


def check() -> None:
    """Say before anything runs that a server will be needed and cannot be had."""
    if importlib.util.find_spec("moto") is None:
        raise SystemExit(
            "what reads from S3 needs moto: pip install 'intune[s3]', or leave it out with `--only`"
        )


class S3Server(Child):
    """An empty S3 store, as long as this context lasts. Needs ``pip install 'intune[s3]'``."""

    def __init__(self) -> None:
        super().__init__("benchmarks.s3_server")


def filesystem(port: int) -> Any:
    """Arrow's S3 filesystem for a server (or a proxy before one) at a port of this machine."""
    return fs.S3FileSystem(
        endpoint_override=f"{HOST}:{port}",
        scheme="http",
        region=REGION,
        access_key="benchmark",
        secret_key="benchmark",
        allow_bucket_creation=True,
    )


def uri(port: int, path: str) -> str:
    """The same as one string, as a user would give it to `Pipeline.from_parquet`."""
    return (
        f"s3://benchmark:benchmark@{path}?scheme=http&endpoint_override={HOST}%3A{port}&region={REGION}"
        "&allow_bucket_creation=true"
    )


def upload(files: Sequence[Path], bucket: str, port: int) -> list[str]:
    """Copy files into a bucket, made if it is not there; their paths on the filesystem."""
    store = filesystem(port)
    store.create_dir(bucket)
    paths = [f"{bucket}/{file.name}" for file in files]
    for file, path in zip(files, paths, strict=True):
        fs.copy_files(str(file), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=store)
    return paths


def main() -> None:
    """The child's side of `S3Server`."""
    # Imported here: the owner's side does not need moto, which takes a second to import.
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints a line for every request
    server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    server.start()
    try:
        serve({"port": server.get_host_and_port()[1]}, lambda message: {})
    finally:
        server.stop()


if __name__ == "__main__":
    main()
