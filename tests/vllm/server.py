"""A real vLLM server on the CPU, in a process group of its own so that a kill takes its workers with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.tools import VLLM_PYTHON
from tests.waiting import wait_until

TASKSET = "/usr/bin/taskset"
MAX_RANK = 64
SLOTS = 16
# They share the cores with the tests and with each other.
START_S = 300.0
# Of the log, when a server does not come up.
TAIL = 3000
CORES = sorted(os.sched_getaffinity(0))
ENVIRONMENT = {
    # Threads that spin at a barrier while another server has the core stand still for seconds.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class VllmServer:
    """One replica that may be killed and started again on the same port."""

    def __init__(self, model: Path, log: Path, core: int, max_rank: int = MAX_RANK) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._model, self._log, self._core, self._max_rank = model, log, core, max_rank
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What its processes have said."""
        return self._log.read_text()

    def start(self) -> None:
        """Returns at once; `ready` waits."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # torch's import hops over all cores that it may use, and Linux may let a newcomer on a core
                # that another server keeps busy wait for as long as that one is busy: seen for minutes.
                [
                    TASKSET,
                    "-c",
                    str(self._core),
                    str(VLLM_PYTHON),
                    "-m",
                    "vllm.entrypoints.openai.api_server",
                    *self._arguments(),
                ],
                env=environment() | {"VLLM_CPU_OMP_THREADS_BIND": str(self._core)},
                # Not here: the plugin lies in vLLM's environment, and this folder's packages would hide it.
                cwd=self._log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> None:
        try:
            wait_until(self._answers, timeout_s=START_S, what=f"vLLM on {self.url}")
        except AssertionError as error:
            raise AssertionError(f"{error}; its last words: {self._words()}") from None

    def revive(self) -> None:
        """A test that failed may have left it dead."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.ready()

    def kill(self) -> None:
        """All of its processes at once, as when the machine goes."""
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _arguments(self) -> list[str]:
        return [
            "--model",
            str(self._model),
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dtype",
            "float32",
            "--max-model-len",
            "1024",
            "--max-num-seqs",
            "16",
            "--enforce-eager",
            "--enable-lora",
            "--max-lora-rank",
            str(self._max_rank),
            "--max-loras",
            "4",
            "--max-cpu-loras",
            str(SLOTS),
        ]

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"vLLM ended: {self._words()}"
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _words(self) -> str:
        return self.log[-TAIL:]


def environment() -> dict[str, str]:
    """The tests' environment without the path of their own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT


@contextmanager
def running(model: Path, folder: Path, *max_ranks: int) -> Iterator[list[VllmServer]]:
    """A server for each highest rank, started together, all of one model."""
    servers = [
        VllmServer(model, folder / f"vllm-{number}.log", CORES[number % len(CORES)], max_rank)
        for number, max_rank in enumerate(max_ranks)
    ]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.ready()
        yield servers
    finally:
        for server in servers:
            server.kill()
