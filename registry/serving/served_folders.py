"""Local copies of versions' files, from which replicas load; a store that hangs does not hold up the control loop.

A copy that is not there yet is fetched in a thread of its own, as a bucket may answer a byte at a time, or never. A
round waits for all such copies together at most COPY_S seconds; the next one finds what has arrived meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from adapterhub.artifacts import ArtifactError
from registry.models import AdapterVersion

COPY_S = 5.0
# Copies that are fetched at the same time; those of further versions wait for a later round.
MOST_FETCHED = 16
log = logging.getLogger(__name__)

_fetches: dict[str, Future[Path]] = {}
_lock = threading.Lock()


class Folders:
    """The verified local copy of each version's files, made once in a round for all replicas."""

    def __init__(self) -> None:
        self._copies: dict[str, str | ArtifactError | OSError] = {}
        self._until = time.monotonic() + COPY_S

    def fetch(self, versions: Iterable[AdapterVersion]) -> None:
        """Begin to fetch the versions that have no copy here and are signed, side by side; `of` then waits for each."""
        for version in versions:
            with suppress(ArtifactError):
                if not copy_of(version).is_dir():
                    version.require_signature()
                    fetched(version)

    def of(self, version: AdapterVersion) -> str:
        """Return the path of the version's verified copy, which may still have to be fetched.

        It waits for that until COPY_S seconds after the object was made. Raises ArtifactError for a damaged version,
        and OSError if there is no copy now, which is not its fault. Later calls raise the same error.
        """
        if version.digest not in self._copies:
            self._copies[version.digest] = self._copied(version)
        copy = self._copies[version.digest]
        if isinstance(copy, Exception):
            raise copy
        return copy

    def _copied(self, version: AdapterVersion) -> str | ArtifactError | OSError:
        try:
            if copy_of(version).is_dir():
                return str(version.served_folder())
            version.require_signature()
            return str(fetched(version).result(max(0.0, self._until - time.monotonic())))
        except TimeoutError:
            return OSError(f"The files of {version} have not arrived yet.")
        except (ArtifactError, OSError) as error:
            log.warning("%s has no copy for replicas: %s", version, error)
            return error


def copy_of(version: AdapterVersion) -> Path:
    """Return the folder of the version's local copy, which need not exist yet."""
    folder: Path = settings.SERVED_DIR / version.digest
    return folder


def fetched(version: AdapterVersion) -> Future[Path]:
    """Return the fetch of the version's files that is in progress, or begin one in a thread.

    The result of the returned future is the folder of the local copy. With MOST_FETCHED others in progress, none is
    begun and the future raises OSError.
    """
    with _lock:
        if (fetch := _fetches.get(version.digest)) is None:
            fetch = Future()
            if len(_fetches) >= MOST_FETCHED:
                fetch.set_exception(OSError(f"The store is busy with {MOST_FETCHED} other versions."))
                return fetch
            _fetches[version.digest] = fetch
            # Not a pool's thread, which the process would wait for at its end.
            threading.Thread(target=run, args=(version, fetch), name="copy of a version", daemon=True).start()
        return fetch


def run(version: AdapterVersion, fetch: Future[Path]) -> None:
    """Fetch the version's files into its local copy, and give the future `fetch` that folder or the error.

    The fetch then no longer counts as in progress.
    """
    try:
        fetch.set_result(version.stored(copy_of(version)))
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is read
        fetch.set_exception(error)
    finally:
        with _lock:
            del _fetches[version.digest]
