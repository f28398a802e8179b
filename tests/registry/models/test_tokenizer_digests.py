"""A version says with what tokenizer and chat template its prompts are made, and refuses a fleet that has others."""

from __future__ import annotations

import json
import shutil

import pytest
from django.db import DatabaseError, transaction
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from adapterhub.core.errors import Invalid
from registry.models import AdapterVersion, BaseModel, Cluster
from tests.markup import markup


def twin(model: BaseModel, slug: str, **files: str) -> BaseModel:
    """The same weights beside other files."""
    copy = BaseModel.objects.create(slug=slug, source=slug)
    shutil.rmtree(copy.folder, ignore_errors=True)
    shutil.copytree(model.folder, copy.folder)
    for name, text in files.items():
        (copy.folder / name.replace("_json", ".json").replace("_jinja", ".jinja")).write_text(text)
    copy.inspect()
    return copy


def test_a_version_has_those_of_its_base_model(base_model: BaseModel, version: AdapterVersion) -> None:
    assert len(version.tokenizer_digest) == 64
    assert version.tokenizer_digest == base_model.tokenizer_digest
    assert version.template_digest == base_model.template_digest == ""
    with pytest.raises(DatabaseError), transaction.atomic():
        AdapterVersion.objects.update(tokenizer_digest="0" * 64)


def test_a_template_is_the_same_in_either_file(base_model: BaseModel) -> None:
    own = twin(base_model, "own", chat_template_jinja="{{ messages }}")
    shared = twin(base_model, "shared", tokenizer_config_json=json.dumps({"chat_template": "{{ messages }}"}))
    other = twin(base_model, "other", chat_template_jinja="{{ tools }}")
    assert own.template_digest == shared.template_digest != other.template_digest
    assert len(own.template_digest) == 64
    assert own.tokenizer_digest == other.tokenizer_digest == base_model.tokenizer_digest
    assert own.digest != other.digest, "and the model is another"


@pytest.mark.parametrize(
    ("files", "other"),
    [
        ({"tokenizer_json": '{"other": 1}'}, "base model and another tokenizer than"),
        ({"chat_template_jinja": "x"}, "base model and another chat template than"),
        ({"config_json": '{"hidden_size": 1}'}, "base model than"),
    ],
    ids=str,
)
def test_a_fleet_with_others_is_refused_by_name(
    base_model: BaseModel, project: Project, version: AdapterVersion, alice: User, files: dict[str, str], other: str
) -> None:
    cluster = Cluster.create(
        project=project, slug="elsewhere", base_model=twin(base_model, "twin", **files), by=alice.as_actor()
    )
    with pytest.raises(Invalid, match=f"was trained on another {other}") as refusal:
        version.require_servable_on(cluster)
    assert refusal.value.code == "wrong_base"


def test_page_and_rest_say_them(version: AdapterVersion, ci: str, alice: User, client: Client) -> None:
    place = f"/api/v1/adapters/{version.adapter}/versions/{version.number}/"
    detail = client.get(place, headers={"Authorization": f"Bearer {ci}"}).json()
    assert (detail["tokenizer_digest"], detail["template_digest"]) == (version.tokenizer_digest, "")
    client.force_login(alice)
    page = markup(client.get(reverse("version", args=[version.adapter, version.number])))
    assert version.tokenizer_digest[:12] in page
    assert "chat template none" in page
