"""`make stop` ends what it can name, and says what it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.embedded.__main__ import stop
from adapterhub.embedded.exceptions import StartError
from adapterhub.embedded.lock import FileLock
from adapterhub.embedded.supervisor import lock_path


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[FileLock]:
    lock = FileLock(lock_path(tmp_path))
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    yield lock
    lock.release()


def test_a_free_folder_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stop(tmp_path) == 0
    assert "does not run with the data folder" in capsys.readouterr().out


def test_a_lock_without_a_name_is_not_taken_for_a_free_one(lock: FileLock, tmp_path: Path) -> None:
    os.ftruncate(lock.descriptor, 0)
    with pytest.raises(StartError, match="does not say as which process"):
        stop(tmp_path)


def test_children_that_outlive_their_supervisor_are_waited_for(
    lock: FileLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    os.pwrite(lock.descriptor, f"{ended.pid}\n".encode(), 0)
    os.ftruncate(lock.descriptor, len(f"{ended.pid}\n"))
    monkeypatch.setattr("adapterhub.embedded.__main__.STOP_S", 0.1)
    with pytest.raises(StartError, match=f"pid {ended.pid}"):
        stop(tmp_path)
