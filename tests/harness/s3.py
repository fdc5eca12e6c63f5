"""A real S3 server on loopback: rclone."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foley_server.launcher.triton import claim_port

RCLONE = Path(sys.executable).with_name("rclone")


@contextmanager
def s3(buckets: Path) -> Iterator[dict[str, str]]:
    """Serve each folder in `buckets` as a bucket while the context is active.

    Yields:
        Environment variables for its clients. Their first requests retry until the server is ready.
    """
    port = claim_port("127.0.0.1", 0)
    command: list[str | Path] = [
        RCLONE,
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        "KEY,SECRET",
        buckets,
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield {
            "AWS_ACCESS_KEY_ID": "KEY",
            "AWS_SECRET_ACCESS_KEY": "SECRET",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
        }
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
