"""Delivery of the audit trail to a SIEM: every event in order and at least once, with its place in its chain.

A line is that of an export (`sequence`, `event`, `prev`, `hash`) with the `chain` before it, so that the receiver can
verify it. An event that is sent again after a lost answer has the same chain and sequence.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from adapterhub import outbound
from adapterhub.audit.models import AuditEvent, Follower, chain_name
from adapterhub.core.tenancy import Tenant, project_model, row_of

log = logging.getLogger(__name__)
BATCH = 500
# Facility 13 (log audit), severity 5 (notice) of RFC 5424.
PRIORITY = 13 * 8 + 5
TIMEOUT_S = 10


class NotTaken(Exception):
    """Raised if the SIEM does not answer or refuses; the message says why."""


def follow() -> int:
    """Send each chain's new events to the SIEM, if one is set; return how many were taken.

    If it is away, that is logged, and the next call sends the rest.
    """
    if not settings.AUDIT_SIEM:
        return 0
    taken = 0
    try:
        for project in [None, *project_model().objects.all()]:
            taken += follow_chain(project)
    except NotTaken as error:
        log.error("The audit trail's SIEM does not take events: %s. They wait for it.", error)
    return taken


def follow_chain(project: Tenant | None) -> int:
    """Send a chain's events after the last one taken, batch by batch; return their number.

    Raises NotTaken if the SIEM does not take a batch; those before it count as taken.
    """
    follower, _ = Follower.objects.get_or_create(project=row_of(project))
    taken = 0
    while events := AuditEvent.objects.of_chain(project).filter(sequence__gt=follower.sequence).fitting(BATCH):
        send([line_of(project, event) for event in events])
        follower.sequence = events[-1].sequence
        # A second worker may have sent more meanwhile: twice is allowed, going back is not.
        Follower.objects.filter(pk=follower.pk, sequence__lt=follower.sequence).update(sequence=follower.sequence)
        taken += len(events)
    return taken


def line_of(project: Tenant | None, event: AuditEvent) -> str:
    """Return the event as JSON text: chain, sequence, canonical text and both hashes."""
    link = event.as_link()
    return json.dumps(
        {
            "chain": chain_name(project),
            "sequence": link.sequence,
            "event": link.canonical.decode(),
            "prev": link.prev_hash.hex(),
            "hash": link.hash.hex(),
        }
    )


def send(lines: Sequence[str]) -> None:
    """Send lines to the SIEM of ADAPTERHUB_AUDIT_SIEM by HTTPS or syslog.

    Raises NotTaken if it does not take them, and ImproperlyConfigured for another scheme.
    """
    parts = urlsplit(settings.AUDIT_SIEM)
    if parts.scheme == "https":
        post(settings.AUDIT_SIEM, parts.hostname or "", lines)
    elif parts.scheme in ("syslog", "syslog+tls"):
        write(parts.hostname or "", parts.port or 6514, lines, is_secure=parts.scheme == "syslog+tls")
    else:
        raise ImproperlyConfigured("ADAPTERHUB_AUDIT_SIEM must begin with https://, syslog+tls:// or syslog://.")


def post(url: str, host: str, lines: Sequence[str]) -> None:
    """Post lines of JSON as one body, with the operator's token if one is set.

    Raises NotTaken unless the response is 2xx.
    """
    headers = {"Content-Type": "application/x-ndjson"}
    if settings.AUDIT_SIEM_TOKEN:
        headers["Authorization"] = f"Bearer {settings.AUDIT_SIEM_TOKEN}"
    body = "".join(f"{line}\n" for line in lines).encode()
    try:
        status, _ = outbound.ask(url, body, host=host, headers=headers, verify=outbound.trusting(settings.AUDIT_CA))
    except (outbound.Forbidden, httpx.HTTPError) as error:
        raise NotTaken(str(error)) from None
    if not 200 <= status < 300:
        raise NotTaken(f"HTTP {status}")


def write(host: str, port: int, lines: Sequence[str], *, is_secure: bool) -> None:
    """Write syslog messages (RFC 5424, framed as in RFC 6587), and wait until the receiver has read all of them.

    Raises NotTaken if the connection fails or the receiver does not close it in time.
    """
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as plain:
            connection = (
                outbound.trusting(settings.AUDIT_CA).wrap_socket(plain, server_hostname=host) if is_secure else plain
            )
            connection.sendall(b"".join(map(framed, lines)))
            # Syslog has no answer: a receiver that closes after our end has read all before it.
            end_of(connection)
            while connection.recv(4096):
                pass
    except OSError as error:
        raise NotTaken(f"{host}:{port}: {error}") from None


def end_of(connection: socket.socket) -> None:
    """Tell the receiver of the connection that nothing more follows."""
    if isinstance(connection, ssl.SSLSocket):
        connection = connection.unwrap()
    connection.shutdown(socket.SHUT_WR)


def framed(line: str) -> bytes:
    """Return a line of `line_of` as a syslog message with the event's time, and the message's length before it."""
    at = json.loads(json.loads(line)["event"])["at"]
    message = f"<{PRIORITY}>1 {at} - adapterhub - audit - \ufeff{line}".encode()
    return str(len(message)).encode() + b" " + message
