"""The API keys with which the router calls engines that ask for one; the routing table carries them sealed."""

from __future__ import annotations

import logging

from serving_client.engine_keys import opened
from serving_client.router.table_follower import TableWatcher

log = logging.getLogger(__name__)


class EngineKeys:
    """The keys of the present routing table, opened with the secret that this router shares with the control plane."""

    def __init__(self, watcher: TableWatcher, secret: str) -> None:
        self._watcher, self._secret = watcher, secret

    def headers(self, url: str) -> dict[str, str]:
        """Return the Authorization header for the replica's engine; empty if the table has no key for it.

        A key that was sealed with another secret is logged as an error and left out.
        """
        table = self._watcher.table
        sealed = table.engine_keys.get(url) if table else None
        if sealed is None:
            return {}
        if (key := opened(sealed, self._secret)) is None:
            log.error("The API key of %s was sealed with another secret: see --secret-file.", url)
            return {}
        return {"Authorization": f"Bearer {key}"}
