"""Declared variants: a copy with other numbers serves its base's adapters, and nothing else does so in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, transaction

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.sentences import sentence
from adapterhub.core.errors import Conflict, Invalid
from registry.base_models import variants
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
from registry.serving.desired_versions import wanted_versions
from registry.serving.routing_table import routing_table
from tests.builders.rest import client as api_client
from tests.builders.rest import problem

TOKENIZER = {"model": {"vocab": {"a": 0}}}


def copy_of(base: BaseModel, slug: str, **changed: Any) -> BaseModel:
    """A ready model of other numbers with the base's configuration, some fields of it changed."""
    facts = {"tokenizer_digest": base.tokenizer_digest, "template_digest": base.template_digest}
    config = {**base.config, **changed.pop("config", {})}
    digest = f"{len(slug):02x}" * 32
    return BaseModel.objects.create(
        slug=slug, source=slug, status="ready", digest=digest, config=config, **facts | changed
    )


@pytest.fixture
def copy(base_model: BaseModel) -> BaseModel:
    return copy_of(base_model, "tiny-int8", config={"quantization_config": {"bits": 8}})


@pytest.fixture
def on_copy(project: Project, copy: BaseModel, alice: User) -> Cluster:
    return Cluster.create(project=project, slug="few-bits", base_model=copy, by=alice.as_actor())


def declared(variant: BaseModel, base: BaseModel, by: User) -> BaseModel:
    variants.declare(variant, base, reason="the same weights in 8 bits", by=by.as_actor())
    variant.refresh_from_db()
    return variant


def served(name: str, cluster: Cluster, version: AdapterVersion, by: User) -> Alias:
    cluster = Cluster.objects.get(pk=cluster.pk)
    return Alias.create(
        project=version.project, name=name, cluster=cluster, version=version, policy={}, by=by.as_actor()
    )


def holding(cluster: Cluster, *versions: AdapterVersion) -> str:
    """The address of a healthy replica of the cluster that holds the versions."""
    url = f"http://127.0.0.1:{9000 + cluster.pk}"
    paths = {version.served_name: f"/served/{version.digest}" for version in versions}
    cluster.replicas.create(url=url, endpoints=[url], is_healthy=True, loaded=paths)
    return url


def test_without_the_relation_a_version_is_refused_with_what_to_do(
    on_copy: Cluster, version: AdapterVersion, alice: User
) -> None:
    with pytest.raises(Invalid, match="have an admin declare it a variant of tiny") as refusal:
        served("short", on_copy, version, alice)
    assert refusal.value.code == "wrong_base"


def test_a_variants_cluster_serves_the_versions_of_its_base(
    copy: BaseModel, base_model: BaseModel, on_copy: Cluster, version: AdapterVersion, alice: User
) -> None:
    declared(copy, base_model, alice)
    served("short", on_copy, version, alice)
    on_copy = Cluster.objects.get(pk=on_copy.pk)
    assert set(wanted_versions(on_copy)) == {version.served_name}
    address = holding(on_copy, version)
    assert routing_table().versions[version.served_name].replicas == (address,)
    assert base_model.highest_rank(version.project) == on_copy.max_lora_rank
    assert "tiny-int8" in base_model.facts(version.project, named=True).names
    event = AuditEvent.objects.get(tag="base_model:variant_declared")
    assert event.reason == "the same weights in 8 bits"
    assert event.after == {"variant_of": "tiny", "base_digest": base_model.digest, "digest": copy.digest}
    assert "declared tiny-int8 a variant" in sentence(event.tag, "alice", "tiny-int8")


def test_nobody_gets_fewer_bits_because_somebody_else_chose_them(
    copy: BaseModel, base_model: BaseModel, on_copy: Cluster, alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    """Requests of a version that an alias serves on its own base model go to that alone, whatever else holds it."""
    declared(copy, base_model, alice)
    served("short", on_copy, alias.version, alice)
    served("other", on_copy, candidate, alice)
    full = holding(alias.cluster, alias.version, candidate)
    short = holding(on_copy, alias.version, candidate)
    routes = routing_table().versions
    assert routes[alias.version.served_name].replicas == (full,)
    assert routes[candidate.served_name].replicas == (short,)


def test_it_never_goes_the_other_way_round(
    copy: BaseModel,
    base_model: BaseModel,
    cluster: Cluster,
    project: Project,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    declared(copy, base_model, alice)
    of_copy = make_version(Adapter.create(project=project, slug="short", base_model=copy, by=alice.as_actor()))
    with pytest.raises(Invalid, match="not the other way round"):
        served("short", cluster, of_copy, alice)
    assert of_copy.served_name not in wanted_versions(cluster)


def test_a_relation_that_versions_depend_on_is_not_revoked(
    copy: BaseModel, base_model: BaseModel, on_copy: Cluster, version: AdapterVersion, alice: User
) -> None:
    declared(copy, base_model, alice)
    served("short", on_copy, version, alice)
    what: dict[str, Any] = {"reason": "worse than thought", "by": alice.as_actor()}
    with pytest.raises(Conflict, match=version.served_name):
        variants.revoke(copy, seen=Project.objects.all(), **what)
    with pytest.raises(Conflict, match="now: 1 of other projects") as refusal:
        variants.revoke(copy, seen=Project.objects.none(), **what)
    assert version.served_name not in str(refusal.value)
    assert BaseModel.objects.get(pk=copy.pk).variant_of == base_model


def test_an_unused_relation_is_revoked_and_recorded(
    copy: BaseModel, base_model: BaseModel, on_copy: Cluster, version: AdapterVersion, alice: User
) -> None:
    declared(copy, base_model, alice)
    variants.revoke(copy, reason="worse than thought", by=alice.as_actor(), seen=Project.objects.none())
    event = AuditEvent.objects.get(tag="base_model:variant_revoked")
    assert (event.before, event.reason) == ({"variant_of": "tiny"}, "worse than thought")
    with pytest.raises(Invalid, match="another base model"):
        served("short", on_copy, version, alice)


def test_chains_and_itself_are_refused_and_impossible(copy: BaseModel, base_model: BaseModel, alice: User) -> None:
    third = copy_of(base_model, "tiny-in-4-bits")
    declared(copy, base_model, alice)
    with pytest.raises(Invalid, match="declare tiny-in-4-bits a variant of tiny"):
        declared(third, copy, alice)
    with pytest.raises(Invalid, match="variants of its own"):
        declared(base_model, third, alice)
    with pytest.raises(Invalid, match="the same files"):
        declared(third, third, alice)
    with pytest.raises(Conflict, match="revoke that first"):
        declared(copy, third, alice)
    for pk, other in ((third.pk, copy), (base_model.pk, third), (third.pk, third)):
        with pytest.raises(DatabaseError), transaction.atomic():
            BaseModel.objects.filter(pk=pk).update(variant_of=other)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"config": {"hidden_size": 32}}, "hidden_size"),
        ({"config": {"vocab_size": 41}}, "vocab_size"),
        ({"config": {"num_hidden_layers": 3}}, "num_hidden_layers"),
        ({"config": {"architectures": ["MistralForCausalLM"]}}, "architectures"),
        ({"config": {"rope_theta": 500000.0}}, "rotary embedding"),
        ({"template_digest": "f" * 64}, "chat template"),
    ],
)
def test_a_model_of_another_shape_or_template_is_no_variant(
    changed: dict[str, Any], named: str, base_model: BaseModel, alice: User
) -> None:
    with pytest.raises(Invalid, match=f"it has another .*{named}"):
        declared(copy_of(base_model, "unlike", **changed), base_model, alice)


def test_what_a_configuration_leaves_out_has_its_default(base_model: BaseModel, alice: User) -> None:
    spelled = {"head_dim": 4, "attention_bias": False, "rope_parameters": {"rope_type": "default"}}
    declared(copy_of(base_model, "spelled-out", config=spelled), base_model, alice)


def test_the_tokenizers_are_compared_by_what_they_do(base_model: BaseModel, alice: User) -> None:
    """Copies often have other files beside the same vocabulary."""
    other = copy_of(base_model, "other-files", tokenizer_digest="e" * 64)
    for model, tokenizer in ((base_model, TOKENIZER), (other, TOKENIZER | {"truncation": None})):
        model.folder.mkdir(parents=True, exist_ok=True)
        (model.folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    declared(other, base_model, alice)
    third = copy_of(base_model, "third", tokenizer_digest="d" * 64)
    (settings.MODELS_DIR / "third").mkdir(exist_ok=True)
    (third.folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    with pytest.raises(Invalid, match="another tokenizer"):
        declared(third, base_model, alice)


def test_rest_declares_shows_and_revokes(
    ci: str, project: Project, alice: User, copy: BaseModel, base_model: BaseModel
) -> None:
    place = "/api/v1/base-models/tiny-int8/"
    body = {"variant_of": "tiny", "reason": "8 bits"}
    reading = ApiToken.issue(name="reading", project=project, scopes=["read"], created_by=alice)[1]
    assert api_client(reading).patch(place, body, format="json").status_code == 403
    problem(api_client(ci).patch(place, {"reason": "x"}, format="json"), 422, "invalid")
    problem(api_client(ci).patch(place, body | {"variant_of": "none"}, format="json"), 422, "invalid")
    answered = api_client(ci).patch(place, body, format="json").json()
    assert (answered["variant_of"], answered["measurement"]) == ("tiny", None)
    assert api_client(reading).get("/api/v1/base-models/tiny/").json()["variants"] == ["tiny-int8"]
    gone = api_client(ci).patch(place, {"variant_of": None, "reason": "undone"}, format="json").json()
    assert gone["variant_of"] is None


def test_the_page_declares_it_and_says_that_it_was_not_measured(
    client: Any, copy: BaseModel, base_model: BaseModel, alice: User, bob: User
) -> None:
    client.force_login(alice)
    assert "A variant of another base model" in client.get("/base-models/tiny-int8/").content.decode()
    answer = client.post("/base-models/tiny-int8/variant/", {"variant_of": "tiny", "reason": "8 bits"})
    assert answer["Location"] == "/base-models/tiny-int8/"
    for page in ("/base-models/tiny-int8/", "/base-models/tiny/"):
        assert "Not measured" in client.get(page).content.decode()
    client.force_login(bob)
    assert client.post("/base-models/tiny-int8/variant/", {"reason": "x"}).status_code == 403
