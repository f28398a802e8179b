"""The server as it is started: by its command line, in a process of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving_client import EngineClient, EngineUnreachable
from serving_client.engine.__main__ import main
from serving_client.engine.errors import ModelUnusable
from serving_client.engine.model import open_model
from tests.waiting import wait_until

ENGINE = [sys.executable, "-m", "serving_client.engine", "--served-model-name", "tiny", "--host", "127.0.0.1"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def url(base_folder: Path) -> Iterator[str]:
    """A running server, ended by SIGTERM."""
    port = free_port()
    options = ["--model", str(base_folder), "--port", str(port), "--threads", "1", "--max-loras", "2"]
    process = subprocess.Popen([*ENGINE, *options])
    with EngineClient(f"http://127.0.0.1:{port}") as client:
        wait_until(lambda: process.poll() is not None or answers(client), 60, "the server answers")
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)


def answers(client: EngineClient) -> bool:
    try:
        return client.health()
    except EngineUnreachable:
        return False


def running(url: str) -> str:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("vllm:num_requests_running"))


@pytest.mark.slow
def test_the_server_serves_and_notices_who_left(url: str, adapters: dict[str, Path]) -> None:
    with EngineClient(url) as client:
        client.load_adapter("dora.v1-0123456789ab", str(adapters["patterns"]))
        assert [(model.name, model.parent) for model in client.models()] == [
            ("tiny", None),
            ("dora.v1-0123456789ab", "tiny"),
        ]
        assert client.complete("dora.v1-0123456789ab", "The bank", max_tokens=4).completion_tokens == 4
    body = {"prompt": "The bank", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
        assert next(stream.iter_lines()).startswith("data: ")
    wait_until(lambda: running(url) == "0", 20, "the request of the client that left is dropped")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body | {"stream": False}, timeout=0.05)
    wait_until(lambda: running(url) == "0", 20, "the same without a stream")


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_model_that_cannot_be_served_is_one_sentence_and_exit_code_2(
    tmp_path: Path, content: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    arguments = ["--model", str(tmp_path), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "1"]
    assert main(arguments) == 2
    assert [str(tmp_path) in line for line in capfd.readouterr().err.splitlines()] == [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence_and_exit_code_2(
    base_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(base_folder), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", "1"]
    assert main([*arguments, "--device", "cuda"]) == 2
    assert capfd.readouterr().err == (
        "PyTorch sees no GPU: install its CUDA build and a driver, or choose --device cpu.\n"
    )


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(tmp_path: Path, base_folder: Path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnusable, match=r"lacks the weights model\.norm\.weight"):
        open_model(str(folder), 512)
