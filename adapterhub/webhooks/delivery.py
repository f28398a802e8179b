"""Sending of deliveries, signed as by Standard Webhooks (standardwebhooks.com): at least once, identified by an id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from uuid import UUID

import httpx
from django.conf import settings
from django.db.models import QuerySet, Window
from django.db.models.functions import RowNumber

from adapterhub import outbound
from adapterhub.webhooks.models import Delivery, body_of

BATCH, MOST_OF_ONE = 50, 10
# A round ends after ROUND_S, and a receiver that took over SLOW_S is asked no more in it: a slow one holds up no other.
ROUND_S, SLOW_S = 30.0, 2.0


def send_due() -> int:
    """Send up to BATCH due deliveries, at most MOST_OF_ONE of a webhook, in turn; return how many attempts were made.

    Stops after ROUND_S seconds, and leaves out webhooks that took over SLOW_S in this round.
    """
    began, count, slow = time.monotonic(), 0, set[UUID]()
    for delivery in due_in_turn():
        attempted_at = time.monotonic()
        if attempted_at - began > ROUND_S:
            break
        if delivery.webhook_id not in slow:
            count += attempt(delivery)
            if time.monotonic() - attempted_at > SLOW_S:
                slow.add(delivery.webhook_id)
    return count


def due_in_turn() -> QuerySet[Delivery]:
    """Return up to BATCH due deliveries, at most MOST_OF_ONE of a webhook.

    They are in turn: the first of each webhook before the second of any.
    """
    turn = Window(RowNumber(), partition_by="webhook", order_by=("next_at", "pk"))
    due = Delivery.objects.due().annotate(turn=turn).filter(turn__lte=MOST_OF_ONE)
    return due.order_by("turn", "next_at").select_related("webhook__project", "event__project")[:BATCH]


def attempt(delivery: Delivery) -> bool:
    """Attempt a delivery, log the result, and return True; False if another worker has it or it is no longer due."""
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
