"""Sending of deliveries, signed as by Standard Webhooks (standardwebhooks.com): at least once, identified by an id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import httpx
from django.conf import settings

from adapterhub import outbound
from adapterhub.webhooks.models import Delivery, body_of

BATCH = 50


def send_due() -> int:
    """Send up to BATCH due deliveries, the oldest first; return how many attempts were made."""
    due = Delivery.objects.due().order_by("next_at").select_related("webhook__project", "event__project")
    return sum(attempt(delivery) for delivery in due[:BATCH])


def attempt(delivery: Delivery) -> bool:
    """Attempt a delivery, log the result, and return True; False if another worker makes the attempt."""
    if not delivery.claim():
        return False
    body = json.dumps(body_of(delivery.event), ensure_ascii=False).encode()
    headers = signed(delivery, body, int(time.time()))
    try:
        answer = outbound.post(delivery.webhook.url, body, allowed=settings.WEBHOOK_HOSTS, headers=headers)
    except (outbound.Forbidden, httpx.HTTPError) as error:
        delivery.note(answer=None, error=str(error) or type(error).__name__)
    else:
        delivery.note(answer=answer, error="")
    return True


def signed(delivery: Delivery, body: bytes, at: int) -> dict[str, str]:
    """Return the request's headers with the signature, HMAC-SHA256 of `id.timestamp.body`.

    `at` is in seconds since 1970.
    """
    name = f"delivery_{delivery.pk}"
    digest = hmac.digest(delivery.webhook.key, f"{name}.{at}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
