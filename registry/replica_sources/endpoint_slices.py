"""Replicas by Kubernetes: EndpointSlices listed once and watched from there, without losing or repeating a change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from registry.replica_sources.address import Source, url_of
from registry.replica_sources.dns_records import LookupFailed

PATH = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
CONNECT_S, READ_S = 5.0, 15.0
# The server ends a watch after this time; one that is silent for longer is broken.
WATCH_S, SILENCE_S = 300, 330.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PAGE = 500


class Gone(Exception):
    """Raised when the server no longer knows the version to go on from: the list has to be read again."""


class Kubernetes:
    """The part of the Kubernetes API that discovery needs.

    `account` is the folder of a service account, with its `token`, which is read for each call, and `ca.crt`; either
    file may be missing.
    """

    def __init__(self, url: str, account: Path) -> None:
        self._url, self._account = url.rstrip("/"), account
        authority = account / "ca.crt"
        self._pool = urllib3.PoolManager(ca_certs=str(authority) if authority.exists() else None, retries=False)

    def list(self, source: Source) -> tuple[dict[str, Any], str]:
        """Return the source's EndpointSlices, as JSON objects by name, and the version from which to watch.

        Raises LookupFailed if Kubernetes does not answer or refuses, and Gone if it forgot the list while its pages
        were read.
        """
        slices: dict[str, Any] = {}
        page = ""
        while True:
            options: dict[str, Any] = {"limit": PAGE} | ({"continue": page} if page else {})
            with self._get(source, options) as answer:
                listed = json.loads(answer.read())
            slices |= {item["metadata"]["name"]: item for item in listed["items"]}
            page = listed["metadata"].get("continue", "")
            if not page:
                return slices, str(listed["metadata"]["resourceVersion"])

    def watch(self, source: Source, version: str) -> Iterator[dict[str, Any]]:
        """Yield `{"type": "OPENED"}` and then each change after the version, until the server ends the watch.

        A change is an event of the API: `{"type", "object"}`, also a BOOKMARK. Raises Gone if the server forgot the
        version, and LookupFailed if it does not answer, refuses, or the watch breaks.
        """
        options = {"watch": 1, "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": WATCH_S}
        with self._get(source, options, read_s=SILENCE_S) as answer:
            yield {"type": "OPENED"}
            try:
                for line in lines(answer):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise_for(event["object"])
                    yield event
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                raise LookupFailed(f"The watch of {source.name} broke: {error}") from error

    def _get(self, source: Source, options: dict[str, Any], *, read_s: float = READ_S) -> urllib3.BaseHTTPResponse:
        query = urlencode({"labelSelector": source.selector, **options})
        token = self._account / "token"
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
        timeout = urllib3.Timeout(connect=CONNECT_S, read=read_s)
        url = f"{self._url}{PATH.format(source.name)}?{query}"
        try:
            answer = self._pool.request("GET", url, headers=headers, timeout=timeout, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise LookupFailed(f"Kubernetes does not answer at {self._url}: {error}") from error
        if answer.status == HTTPStatus.GONE:
            answer.release_conn()
            raise Gone
        if answer.status != HTTPStatus.OK:
            text = answer.read(500).decode(errors="replace")
            answer.release_conn()
            raise LookupFailed(f"Kubernetes refuses the EndpointSlices of {source.name}: {answer.status} {text}")
        return answer


def lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield each whole line of a body as it comes, without its line end; blank lines are skipped."""
    rest = b""
    for chunk in answer.stream(65536):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from filter(None, whole)


def raise_for(status: dict[str, Any]) -> None:
    """Raise the error that a Status object of the API stands for.

    It is Gone for a version that the server forgot, else LookupFailed with what the object says.
    """
    if status.get("code") == HTTPStatus.GONE or status.get("reason") == "Expired":
        raise Gone
    raise LookupFailed(f"Kubernetes ends the watch: {status.get('message') or status.get('reason')}")


class SliceFollower:
    """A thread that keeps the endpoints of a source as they are now.

    It starts at once, and calls `changed` after each list, each event of the watch and each failed lookup.
    """

    def __init__(self, api: Kubernetes, source: Source, changed: Callable[[], None]) -> None:
        self._api, self._source, self._changed = api, source, changed
        self._slices: dict[str, Any] = {}
        self._version = ""
        self._error = "The EndpointSlices were not read yet."
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"slices {source.name}", daemon=True)
        self._thread.start()

    def endpoints(self) -> dict[str, bool]:
        """Map the URL of each replica to True if it is leaving.

        Raises LookupFailed before the first list was read, and after a failed lookup until the next one succeeds.
        """
        with self._lock:
            if self._error:
                raise LookupFailed(self._error)
            return endpoints_of(self._slices.values(), self._source.port)

    def close(self) -> None:
        """Have the thread end once the call in which it waits returns; this does not wait for that."""
        self._stopped.set()

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                self._follow()
                pause = FIRST_PAUSE_S
            except Gone:
                self._version = ""
                self._stopped.wait(FIRST_PAUSE_S)
            except LookupFailed as error:
                with self._lock:
                    self._error = str(error)
                self._changed()
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _follow(self) -> None:
        """List unless the version is known, then watch until the server ends it."""
        if not self._version:
            slices, version = self._api.list(self._source)
            self._keep(slices, version)
        for event in self._api.watch(self._source, self._version):
            self._apply(event)
            if self._stopped.is_set():
                return

    def _apply(self, event: dict[str, Any]) -> None:
        if event["type"] == "OPENED":
            return self._keep(self._slices, self._version)
        meta = event["object"]["metadata"]
        slices = dict(self._slices)
        if event["type"] == "DELETED":
            slices.pop(meta["name"], None)
        elif event["type"] in ("ADDED", "MODIFIED"):
            slices[meta["name"]] = event["object"]
        return self._keep(slices, str(meta["resourceVersion"]))

    def _keep(self, slices: dict[str, Any], version: str) -> None:
        with self._lock:
            self._slices, self._version, self._error = slices, version, ""
        self._changed()


def endpoints_of(slices: Any, port_name: str) -> dict[str, bool]:
    """Map the URL of each endpoint to True if it is leaving, which it is when every slice says so.

    An endpoint that is not ready counts: the control plane has to load it first. Without a name the only port counts. A
    slice of names, or one without exactly one such port, is skipped.
    """
    leaving: dict[str, bool] = {}
    for one in slices:
        ports = [port["port"] for port in one.get("ports") or [] if port.get("name") == port_name or not port_name]
        if one.get("addressType") == "FQDN" or len(ports) != 1:
            continue
        for endpoint in one.get("endpoints") or []:
            url = url_of(endpoint["addresses"][0], ports[0])
            is_leaving = bool((endpoint.get("conditions") or {}).get("terminating"))
            leaving[url] = is_leaving and leaving.get(url, True)
    return leaving
