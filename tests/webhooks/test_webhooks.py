"""Webhooks from the change to a real receiver: outbox, signature, retries, log, redelivery, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from rest_framework.test import APIClient

from adapterhub import outbound
from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.errors import Invalid, InvalidTransition
from adapterhub.webhooks import delivery
from adapterhub.webhooks.delivery import due_in_turn, send_due
from adapterhub.webhooks.models import MOST_ATTEMPTS, Attempt, Delivery, DeliveryStatus, Webhook, pause_after
from registry.models import Adapter, BaseModel

HOOK = "https://hook.example/in"


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent and answers with the next status of `answers`, then with 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []


class Taking(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Stands at hook.example; only the look-up, which refuses this machine's addresses, is replaced."""
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    receiver_url = f"http://127.0.0.1:{server.server_port}/in"
    monkeypatch.setattr(outbound, "pinned", lambda url, allowed: (receiver_url, "hook.example"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hook(project: Project, alice: User, receiver: Receiver) -> Webhook:
    return Webhook.create(project, HOOK, ["adapter:*", "rollout:promoted"], by=alice.as_actor())


def make_due() -> None:
    Delivery.objects.update(next_at=now() - timedelta(seconds=1))


@pytest.mark.threat("G4")
def test_a_change_is_told_with_a_signature(hook: Webhook, receiver: Receiver, adapter: Adapter) -> None:
    assert send_due() == 1
    (headers, body), delivery = receiver.got[0], Delivery.objects.get()
    payload = json.loads(body)
    assert (payload["type"], payload["data"]["object_name"], payload["data"]["project"]) == (
        "adapter:created",
        "dora",
        "eu",
    )
    key = base64.b64decode(hook.secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    assert (headers["host"], headers["webhook-id"]) == ("hook.example", f"delivery_{delivery.pk}")
    assert (delivery.status, Attempt.objects.get().answer, send_due()) == (DeliveryStatus.DELIVERED, 204, 0)


def test_a_change_that_is_undone_is_not_told(
    hook: Webhook, project: Project, base_model: BaseModel, alice: User
) -> None:
    with transaction.atomic():
        Adapter.create(project=project, slug="undone", base_model=base_model, by=alice.as_actor())
        assert Delivery.objects.count() == 1
        transaction.set_rollback(True)
    assert Delivery.objects.count() == 0


@pytest.mark.threat("G5")
def test_others_are_told_nothing(hook: Webhook, base_model: BaseModel, charlie: User, alice: User) -> None:
    other = Project.objects.get(slug="other")
    Adapter.create(project=other, slug="theirs", base_model=base_model, by=charlie.as_actor())
    hook.revoke(by=alice.as_actor())
    Adapter.create(project=hook.project, slug="late", base_model=base_model, by=alice.as_actor())
    assert not Delivery.objects.exists()


def test_what_is_not_taken_is_sent_again_later(hook: Webhook, receiver: Receiver, adapter: Adapter) -> None:
    receiver.answers = [500, 302]
    assert (send_due(), send_due()) == (1, 0)
    make_due()
    assert send_due() == 1
    assert Delivery.objects.get().status == DeliveryStatus.PENDING
    make_due()
    assert send_due() == 1
    assert [attempt.answer for attempt in Attempt.objects.all()] == [500, 302, 204]
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert [pause_after(count).seconds for count in (1, 2, 3, 14)] == [5, 10, 20, 21600]


def changed(adapter: Adapter, by: User) -> None:
    with transaction.atomic():
        AuditEvent.record(Tag.ADAPTER_CHANGED, adapter, by=by.as_actor(), project=adapter.project)


@pytest.mark.threat("G8")
def test_a_slow_receiver_holds_up_no_other(
    hook: Webhook, receiver: Receiver, adapter: Adapter, project: Project, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its deliveries would take the whole time-out, and all that are due stood before the others'."""
    for _ in range(3):
        changed(adapter, alice)
    other = Webhook.create(project, f"{HOOK}/other", ["adapter:*"], by=alice.as_actor())
    changed(adapter, alice)
    make_due()
    assert [each.webhook for each in due_in_turn()][:2] in ([hook, other], [other, hook])
    monkeypatch.setattr(delivery, "SLOW_S", -1)
    assert send_due() == 2
    assert Delivery.objects.due().filter(webhook=other).count() == 0
    monkeypatch.setattr(delivery, "ROUND_S", -1)
    assert send_due() == 0


def test_too_many_attempts_end_and_a_person_may_send_again(
    hook: Webhook, receiver: Receiver, adapter: Adapter, alice: User
) -> None:
    Delivery.objects.update(attempts=MOST_ATTEMPTS - 1)
    receiver.answers = [500]
    send_due()
    delivery = Delivery.objects.get()
    assert (delivery.status, send_due()) == (DeliveryStatus.FAILED, 0)
    delivery.redeliver(by=alice.as_actor())
    send_due()
    delivery.refresh_from_db()
    assert (delivery.status, delivery.log.count()) == (DeliveryStatus.DELIVERED, 2)
    hook.revoke(by=alice.as_actor())
    delivery.refresh_from_db()
    with pytest.raises(InvalidTransition):
        Delivery.objects.get().redeliver(by=alice.as_actor())


def test_one_of_two_workers_sends(hook: Webhook, adapter: Adapter) -> None:
    first, second = Delivery.objects.get(), Delivery.objects.get()
    assert (first.claim(), second.claim()) == (True, False)


@pytest.mark.threat("G3")
def test_only_what_an_operator_allowed_is_asked(project: Project, alice: User, settings: Any) -> None:
    settings.WEBHOOK_HOSTS = ["127.0.0.1"]
    for url in (HOOK, "http://hook.example/", "https://127.0.0.1/"):
        with pytest.raises(Invalid) as refused:
            Webhook.create(project, url, ["rollout:*"], by=alice.as_actor())
        assert (refused.value.field, refused.value.code) == ("url", "forbidden_address")


@pytest.mark.threat("G3")
def test_an_address_that_was_allowed_once_is_refused_later(
    hook: Webhook, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    send_due()
    assert "allow-list" in Attempt.objects.get().error


def test_by_rest_and_by_page(receiver: Receiver, ci: str, alice: User, client: Client) -> None:
    api = APIClient()
    api.credentials(HTTP_AUTHORIZATION=f"Bearer {ci}")
    body = {"project": "eu", "url": HOOK, "events": ["token:*"]}
    for events in ([], ["rollout:flew"]):
        assert api.post("/api/v1/webhooks/", {**body, "events": events}, format="json").status_code == 422
    created = api.post("/api/v1/webhooks/", body, format="json")
    assert (created.status_code, created.json()["secret"]) == (201, Webhook.objects.get().secret)
    listed = api.get("/api/v1/webhooks/").content.decode()
    assert (created.json()["id"] in listed, "whsec_" in listed) == (True, False)
    api.post("/api/v1/tokens/", {"project": "eu", "name": "bot", "scopes": ["infer"]})
    send_due()
    log = api.get("/api/v1/deliveries/").json()["results"][0]
    assert (log["status"], log["type"], log["log"][0]["answer"]) == ("delivered", "token:created", 204)
    assert api.post(f"/api/v1/deliveries/{log['id']}/redeliver/").json()["status"] == "pending"
    client.force_login(alice)
    page = client.post(reverse("webhooks"), {"project": "eu", "url": HOOK, "events": "rollout:* alias:moved"})
    assert b"whsec_" in page.content
    assert b"whsec_" not in client.get(reverse("webhooks")).content
    assert client.post(reverse("redeliver", args=[log["id"]])).status_code == 302
    send_due()
    assert len(receiver.got) == 2
    assert client.post(reverse("revoke-webhook", args=[created.json()["id"]]), {"reason": "moved"}).status_code == 302
    assert api.get(f"/api/v1/webhooks/{created.json()['id']}/").json()["revoked_at"]
