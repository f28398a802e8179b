"""JSON signed with Ed25519: an object of the canonical text and its signature. Keys are passed as arguments."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def signed_with(key: Ed25519PrivateKey, domain: bytes, content: dict[str, Any]) -> bytes:
    """Return the content with its signature, as JSON in bytes.

    `signed` is the content's canonical JSON (RFC 8785), as one text; `signature` is hexadecimal and signs the bytes of
    `domain` followed by those of that text.
    """
    text = rfc8785.dumps(content)
    signature = key.sign(domain + text).hex()
    return json.dumps({"signed": text.decode(), "signature": signature}).encode()
