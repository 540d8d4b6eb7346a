"""Clip store on S3: the same clips as from a folder, and clips per second, on a local stand-in of the service.

    pip install s3fs flask flask-cors "moto[s3]"   # in an environment of its own: they pin older packages
    python benchmarks/store_s3.py
    python benchmarks/store_s3.py --quick          # small scans

The stand-in is written in Python and runs on the same cores: the figures show that reading works, with processes and in
parallel, not what a service reaches.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from encoder import table
from store import BATCH, CLIP, noise_scan, same, speed

from bids_app.cli.train import main as train
from bids_app.training.data.loader import ClipBatches
from bids_app.training.data.store import ClipStore

URL = "s3://clips/store"


def check(url: str, folder: Path, n_scans: int, n_vols: int, n_voxels: int) -> None:
    """Write the same scans to a URL and to a folder, and raise an error if their clips differ."""
    stores = [ClipStore(place, "global") for place in (url, folder)]
    for store in stores:
        with store.writer() as writer:
            for k in range(n_scans):
                writer.add(noise_scan(f"sub-{k:05d}_task-rest", k, n_vols, n_voxels))
        store.write_index()
    remote, local = (tuple(ClipStore(store.place.url)) for store in stores)
    batches = zip(ClipBatches(remote, 2, workers=2).epoch(0), ClipBatches(local, 2).epoch(0), strict=True)
    if not all(torch.equal(one.clips, two.clips) for one, two in batches):
        raise SystemExit("The clips differ.")
    if [dict(scan.signal) for scan in remote] != [dict(scan.signal) for scan in local]:
        raise SystemExit("The facts differ.")
    if train(["store", "verify", url]) or train(["store", "convert", str(folder), f"{url}2"]):
        raise SystemExit("A command failed.")
    print(f"{n_scans} scans on S3 have the same clips as in a folder.")


def main() -> None:
    """Run the benchmark and print its table."""
    import boto3
    from moto.server import ThreadedMotoServer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    n_scans, n_vols, n_voxels = (2, 40, 2000) if arguments.quick else (4, 200, 230_000)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        boto3.client("s3").create_bucket(Bucket="clips")
        with tempfile.TemporaryDirectory() as folder:
            check(URL, Path(folder) / "store", n_scans, n_vols, n_voxels)
        scans, lines = tuple(ClipStore(URL)) * 20, []
        for workers in (0, 2):
            rate, _ = speed(partial(ClipBatches(scans, BATCH, workers=workers).epoch, 0), same, 4)
            lines.append([f"{workers} processes" if workers else "a thread", f"{rate:.0f}"])
    finally:
        server.stop()
    table(f"Clips of {CLIP * n_voxels / 1e6:.1f} MB from the stand-in", ["read by", "clips/s"], lines)


if __name__ == "__main__":
    main()
