"""Parquet in object storage. The store is a server on this machine; with a real one, only the URI differs."""

from __future__ import annotations

import logging
from pathlib import Path

from moto.server import ThreadedMotoServer
from pyarrow import fs
from sample import sample

import intune
from intune.pipelines import Pipeline


def main() -> None:
    """Upload the sample, and read an epoch of it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = fs.S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", access_key="example",
        secret_key="example", allow_bucket_creation=True,
    )  # fmt: skip
    try:
        store.create_dir("bucket")
        for path in sorted(Path(sample()).glob("*.parquet")):
            with store.open_output_stream(f"bucket/{path.name}") as file:
                file.write(path.read_bytes())
        pipeline = Pipeline.from_parquet("bucket", filesystem=store).batch(512)
        with intune.tune(pipeline, memory="256MiB", display="auto") as loader:
            rows = sum(len(batch["label"]) for batch in loader)
            print(f"{rows:,} rows; {loader.summary()}")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
