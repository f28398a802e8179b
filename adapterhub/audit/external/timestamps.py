"""Time-stamps of an authority (RFC 3161): asked for over HTTPS, verified against the authority's certificate."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography.x509 import Certificate, load_pem_x509_certificates
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from adapterhub import outbound

QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"


class NoTimestamp(Exception):
    """Raised if the authority gave no valid token; the message says why."""


def stamp(url: str, message: bytes) -> bytes:
    """Return the response of the authority at `url` with its token for the message, of which it gets the sha256 alone.

    Raises NoTimestamp if there is no valid token, and ImproperlyConfigured without certificates to verify it.
    """
    query = TimestampRequestBuilder().data(message).hash_algorithm(HashAlgorithm.SHA256).build()
    host = urlsplit(url).hostname or ""
    try:
        status, content = outbound.ask(
            url,
            query.as_bytes(),
            host=host,
            headers={"Content-Type": QUERY, "Accept": REPLY},
            verify=outbound.trusting(settings.AUDIT_CA),
        )
    except (outbound.Forbidden, httpx.HTTPError) as error:
        raise NoTimestamp(f"it does not answer ({error})") from None
    if status != 200 or not holds(content, message):
        raise NoTimestamp(
            f"its response (HTTP {status}) is not a time-stamp signed by one of ADAPTERHUB_AUDIT_TSA_CERTIFICATES"
        )
    return content


def holds(response: bytes, message: bytes) -> bool:
    """Return True if the response is a token of a trusted authority for this message.

    Raises ImproperlyConfigured without certificates to verify it.
    """
    builder = VerifierBuilder()
    for certificate in certificates():
        builder = builder.add_root_certificate(certificate)
    try:
        return bool(builder.build().verify_message(decode_timestamp_response(response), message))
    except (ValueError, VerificationError):
        return False


def certificates() -> list[Certificate]:
    """Return the trusted root certificates of time-stamping authorities, from the PEM file that the operator has set.

    Raises ImproperlyConfigured if the file cannot be read or has none.
    """
    path = settings.AUDIT_TSA_CERTIFICATES
    try:
        return load_pem_x509_certificates(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ImproperlyConfigured(
            f"ADAPTERHUB_AUDIT_TSA_CERTIFICATES {path!r} holds no certificates in PEM ({error}): name the authority's."
        ) from None
