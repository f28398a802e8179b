"""The check of a base model always ends: with the model ready, or rejected with the reason and its slug free."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from django.conf import settings as django_settings
from django.utils.timezone import now
from safetensors.numpy import save

from adapterhub.accounts.models import User
from adapterhub.celery import app
from adapterhub.core.errors import Invalid
from registry.models import BaseModel, BaseModelStatus
from registry.models.base_model import CHECK_LOST
from registry.serving.valkey import valkey as connect
from registry.tasks import check_base_model, check_base_models
from tests.builders.adapters import CONFIG
from tests.builders.rest import client
from tests.fakes.hub import Hub, running

SOURCE = "acme/tiny"


@pytest.fixture(autouse=True)
def listed(settings: Any) -> None:
    """Operators let models of this owner be fetched."""
    settings.BASE_MODEL_SOURCES = ["acme"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories[SOURCE] = {
            "config.json": json.dumps(CONFIG).encode(),
            "tokenizer.json": b"{}",
            "model.safetensors": save({"weight": np.zeros((4, 4), np.float32)}),
        }
        yield server


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[None]:
    """It accepts every connection and never answers."""
    settings.DOWNLOAD_STALL_S = 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


def registered(alice: User, slug: str, source: str = SOURCE) -> BaseModel:
    return BaseModel.register(slug=slug, source=source, by=alice.as_actor())


def test_a_hub_that_never_answers_ends_in_a_rejection_and_the_slug_is_free(
    alice: User, ci: str, silent_hub: None
) -> None:
    model = registered(alice, "slow")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == "rejected"
    assert "has sent nothing for 1 s" in model.message
    again = client(ci).post(
        "/api/v1/base-models/", {"slug": "slow", "source": "acme/other"}, content_type="application/json"
    )
    assert again.status_code == 202
    model.refresh_from_db()
    assert (model.status, model.source, model.message, model.check_attempt) == ("checking", "acme/other", "", 0)


@pytest.mark.slow
def test_a_hub_that_brings_some_bytes_a_second_does_not_hold_its_worker_for_a_day(
    alice: User, hub: Hub, settings: Any
) -> None:
    """Each small file that arrived once counted as progress, and a repository may hold any number of them."""
    settings.DOWNLOAD_STALL_S = 6
    hub.delay_s = 3.0
    hub.repositories[SOURCE] |= {f"notes/{number}.json": b"{}" for number in range(400)}
    model = registered(alice, "slow")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == "rejected"
    assert re.search(r"has sent only [\d,]+ bytes? in 12 s", model.message)


def test_a_snapshot_is_downloaded_and_its_slug_is_taken(alice: User, hub: Hub) -> None:
    model = registered(alice, "from-hub")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert (model.status, model.message) == ("ready", "")
    assert {path.name for path in model.folder.iterdir()} >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert not list(django_settings.MODELS_DIR.glob(".partial-from-hub*"))
    with pytest.raises(Invalid, match="registered already"):
        registered(alice, "from-hub")


def test_what_the_hub_lacks_leaves_no_files_for_the_next_model_of_the_slug(alice: User, hub: Hub) -> None:
    hub.repositories[SOURCE].pop("tokenizer.json")
    model = registered(alice, "lacking")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == "rejected"
    assert "lacks tokenizer.json" in model.message
    assert not model.folder.exists()


def test_files_that_cannot_be_read_reject_the_model(alice: User) -> None:
    model = registered(alice, "broken", "broken")
    model.folder.mkdir(parents=True)
    (model.folder / "config.json").write_text("{")
    (model.folder / "tokenizer.json").write_text("{}")
    (model.folder / "model.safetensors").write_bytes(b"no weights")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == "rejected"
    assert model.message
    assert model.folder.exists(), "an operator's own folder stays"


def test_a_check_whose_worker_died_is_taken_up_and_fails_after_its_attempts(alice: User, valkey: object) -> None:
    model = registered(alice, "interrupted", "nowhere")
    for attempt in range(1, django_settings.JOB_ATTEMPTS + 1):
        claimed = BaseModel.begin_check(model.pk)
        assert claimed
        assert claimed.check_attempt == attempt
        assert BaseModel.begin_check(model.pk) is None, "while it gives signs of life"
        BaseModel.objects.filter(pk=model.pk).update(checked_at=now() - CHECK_LOST - timedelta(seconds=1))
        check_base_models()
        assert queued() == 1
        check_base_models()
        assert queued() == 1, "a message that waits is not sent twice"
        with connect() as server:
            server.delete("download")
    check_base_model(model.pk)
    model.refresh_from_db()
    assert model.status == BaseModelStatus.REJECTED
    assert "interrupted 3 times" in model.message


def test_an_attempt_that_was_taken_over_writes_nothing(alice: User) -> None:
    model = registered(alice, "taken-over", "nowhere")
    stopped = BaseModel.begin_check(model.pk)
    BaseModel.objects.filter(pk=model.pk).update(checked_at=now() - CHECK_LOST)
    assert BaseModel.begin_check(model.pk)
    assert stopped
    assert not stopped.check_goes_on()


def queued() -> int:
    with connect() as server:
        return int(server.llen(app.amqp.router.route({}, check_base_model.name)["queue"].name))
