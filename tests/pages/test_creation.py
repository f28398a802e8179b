"""Forms that create and change what the API can: by whom may, with the words of a refusal at the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, Approval, BaseModel, Cluster, Replica
from tests.builders.adapters import write_adapter
from tests.builders.people import member
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server
from training.models import Dataset, Evaluation

pytestmark = pytest.mark.django_db
ALONE = ["/tokens/", "/webhooks/", "/training/new/", "/rank-analyses/new/", "/adapters/new/", "/clusters/new/"]


@pytest.fixture
def root(client: Client) -> User:
    user = User.objects.create_superuser("root", "root@example.org", "root-long-password")
    client.force_login(user)
    return user


@pytest.fixture
def lead(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


@pytest.mark.parametrize("path", ALONE)
def test_before_the_first_project_an_administrator_is_led_to_its_form(root: User, client: Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, "/new-project/" in text_of(answer)) == (409, True)


def test_before_the_first_project_no_page_of_the_navigation_is_forbidden(root: User, client: Client) -> None:
    for path in ("/", "/audit/", "/datasets/", "/adapters/", "/clusters/", "/base-models/", "/settings/"):
        assert client.get(path).status_code == 200, path
    assert "add one below" not in text_of(client.get("/datasets/"))


def test_who_creates_a_project_is_its_admin(root: User, client: Client) -> None:
    sent = {"name": "European compliance", "slug": "eu"}
    assert client.post("/new-project/", sent)["Location"] == "/projects/eu/"
    assert Membership.objects.get().role == "admin"
    again = client.post("/new-project/", sent)
    assert (again.status_code, "The slug &#x27;eu&#x27; is taken" in text_of(again)) == (422, True)


def test_only_an_administrator_of_the_installation_creates_projects(lead: Client) -> None:
    assert lead.post("/new-project/", {"name": "x", "slug": "x"}).status_code == 403


def test_a_members_roles_are_granted_and_revoked(lead: Client, bob: User, project: Project) -> None:
    assert lead.post("/projects/eu/", {"user": "bob", "role": "trainer"}).status_code == 302
    membership = Membership.objects.get(user=bob, role="trainer")
    lead.post("/projects/eu/roles/revoke/", {"held": membership.pk, "reason": "left the team"})
    assert not Membership.objects.filter(pk=membership.pk).exists()
    assert AuditEvent.objects.get(tag="membership:revoked").reason == "left the team"
    assert lead.post("/projects/eu/", {"user": "charlie", "role": "trainer"}).status_code == 422


def test_a_role_of_another_project_cannot_be_revoked(lead: Client, charlie: User) -> None:
    membership = Membership.objects.get(user=charlie)
    lead.post("/projects/eu/roles/revoke/", {"held": membership.pk, "reason": "x"})
    assert Membership.objects.filter(pk=membership.pk).exists()


def test_a_folder_of_the_models_folder_becomes_a_base_model(lead: Client, base_model: BaseModel) -> None:
    folder = settings.MODELS_DIR / "second"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    page = text_of(lead.get("/new-base-model/"))
    assert '<option value="second" selected>' in page
    assert '<option value="tiny"' not in page
    assert lead.post("/new-base-model/", {"folder": "second"})["Location"] == "/base-models/second/"
    assert BaseModel.objects.get(slug="second").source == "second"
    assert "checking" in text_of(lead.get("/base-models/second/"))


@pytest.mark.parametrize(
    ("fields", "slug"), [({"hub": "Qwen/Qwen3-0.6B"}, "qwen3-0-6b"), ({"hub": "acme/m", "slug": "mine"}, "mine")]
)
def test_a_hub_id_becomes_a_base_model(lead: Client, fields: dict[str, str], slug: str, settings: Any) -> None:
    settings.BASE_MODEL_SOURCES = [fields["hub"]]
    assert lead.post("/new-base-model/", {**fields, "revision": "main"})["Location"] == f"/base-models/{slug}/"
    assert BaseModel.objects.get().source == fields["hub"]


@pytest.mark.parametrize(
    "fields",
    [
        {"folder": ""},
        {"hub": "no hub id"},
        {"hub": "a/b", "engine": "http://127.0.0.1:1"},
        {"engine": "http://elsewhere:1"},
    ],
)
def test_a_base_model_without_one_origin_is_refused_at_the_field(lead: Client, fields: dict[str, str]) -> None:
    assert lead.post("/new-base-model/", fields).status_code == 422
    assert not BaseModel.objects.exists()


def test_an_engine_says_which_base_model_it_serves(
    lead: Client, engines: list[tuple[FakeEngine, Server]], base_model: BaseModel
) -> None:
    BaseModel.objects.all().delete()
    assert lead.post("/new-base-model/", {"engine": engines[0][1].url}).status_code == 302
    assert BaseModel.objects.get().source == "tiny"


def test_names_of_a_base_model_are_declared(lead: Client, base_model: BaseModel) -> None:
    lead.post("/base-models/tiny/", {"also_named": "acme/copy\nacme/other", "reason": "copies"})
    base_model.refresh_from_db()
    assert base_model.also_named == ["acme/copy", "acme/other"]


def test_an_adapter_is_created_and_described(lead: Client, base_model: BaseModel) -> None:
    page = text_of(lead.get("/adapters/new/"))
    assert '<option value="eu" selected>' in page
    assert '<option value="tiny" selected>' in page
    sent = {"project": "eu", "slug": "dora", "base_model": "tiny", "tags": "law\nlaw\nfinance"}
    assert lead.post("/adapters/new/", sent)["Location"] == "/adapters/eu.dora/"
    lead.post("/adapters/eu.dora/edit/", {"description": "Reads DORA.", "tags": "law"})
    adapter = Adapter.objects.get()
    assert (adapter.description, adapter.tags) == ("Reads DORA.", ["law"])
    assert lead.post("/adapters/new/", sent).status_code == 422


def test_a_version_of_another_training_is_uploaded_and_archived(
    lead: Client, adapter: Adapter, tmp_path: Path, bob: User
) -> None:
    assert '<a class="button plain" href="/adapters/eu.dora/upload/"' in text_of(lead.get("/adapters/eu.dora/"))
    folder = write_adapter(tmp_path / "up", seed=9)
    names = ("adapter_model.safetensors", "adapter_config.json")

    def files() -> dict[str, Any]:
        return {"files": [SimpleUploadedFile(name, (folder / name).read_bytes()) for name in names]}

    assert lead.post("/adapters/eu.dora/upload/", {"fold": ""}).status_code == 422
    assert lead.post("/adapters/eu.dora/upload/", files())["Location"] == "/adapters/eu.dora/v1/"
    version = AdapterVersion.objects.get()
    assert (version.status, version.method) == ("checking", "upload")
    assert "already been published as dora v1" in text_of(lead.post("/adapters/eu.dora/upload/", files()))
    (folder / names[1]).write_text('{"peft_type": "PREFIX_TUNING"}')
    refused = lead.post("/adapters/eu.dora/upload/", files())
    assert (refused.status_code, "PREFIX_TUNING" in text_of(refused)) == (422, True)
    lead.post("/adapters/eu.dora/v1/archive/", {"reason": "a trial"})
    version.refresh_from_db()
    assert version.status == "archived"
    lead.force_login(bob)
    assert lead.post("/adapters/eu.dora/upload/", files()).status_code == 403
    assert "/upload/" not in text_of(lead.get("/adapters/eu.dora/"))


def test_an_evaluation_is_asked_for_followed_and_cancelled(
    lead: Client, version: AdapterVersion, candidate: AdapterVersion, dataset: Dataset
) -> None:
    page = text_of(lead.get("/adapters/eu.dora/v1/"))
    assert 'href="/adapters/eu.dora/v1/evaluate/"' in page
    refused = lead.post("/adapters/eu.dora/v1/evaluate/", {"pattern": ""})
    assert (refused.status_code, "Name a dataset, prompts, or a task." in text_of(refused)) == (422, True)
    fields = {"dataset": dataset.pk, "against": candidate.pk, "prompts": "By when?\nIn hours.\n---\nTo whom?"}
    place = lead.post("/adapters/eu.dora/v1/evaluate/", fields)["Location"]
    job = Evaluation.objects.get()
    assert (job.dataset, job.against, job.prompts) == (dataset, candidate, ["By when?\nIn hours.", "To whom?"])
    assert "No result is kept" in text_of(lead.get(place))
    assert place in text_of(lead.get("/adapters/eu.dora/v1/"))
    lead.post(f"{place}cancel/", {"reason": "not needed"})
    job.refresh_from_db()
    assert job.status == "cancelled"


def test_a_cluster_comes_with_its_replicas_or_not_at_all(lead: Client, base_model: BaseModel) -> None:
    sent = {
        **{"project": "eu", "slug": "cpu", "base_model": "tiny", "engine": "embedded"},
        **{"max_lora_rank": 64, "max_loras": 8},
    }
    refused = lead.post("/clusters/new/", {**sent, "replicas": "http://127.0.0.1:9001\nhttp://elsewhere:1"})
    assert (refused.status_code, Cluster.objects.count(), Replica.objects.count()) == (422, 0, 0)
    assert lead.post("/clusters/new/", {**sent, "replicas": "http://127.0.0.1:9001"}).status_code == 302
    lead.post("/clusters/eu.cpu/replicas/", {"url": "http://127.0.0.1:9002"})
    assert list(Replica.objects.values_list("url", flat=True)) == ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]


def test_a_cluster_names_its_source_of_replicas_and_its_engines_key(lead: Client, base_model: BaseModel) -> None:
    sent = {
        **{"project": "eu", "slug": "gpu", "base_model": "tiny", "engine": "vllm", "max_lora_rank": 64},
        **{"max_loras": 8, "engine_key": "sk-1", "discovery": "vllm:8000"},
    }
    refused = lead.post("/clusters/new/", sent)
    assert (refused.status_code, Cluster.objects.count()) == (422, 0)
    assert "names no source of replicas" in text_of(refused)
    assert lead.post("/clusters/new/", {**sent, "discovery": "dns://vllm.test:8000"}).status_code == 302
    cluster = Cluster.objects.get()
    assert (cluster.discovery, cluster.engine_key) == ("dns://vllm.test:8000", "sk-1")


def test_the_engines_that_the_operator_named_are_proposed(lead: Client, base_model: BaseModel, settings: Any) -> None:
    settings.ENGINE_HOSTS = ["127.0.0.1:8100", "localhost:8100", "[::1]:8100", "127.0.0.1:8101", "localhost:8101"]
    page = text_of(lead.get("/clusters/new/"))
    assert "http://127.0.0.1:8100\nhttp://127.0.0.1:8101</textarea>" in page


def test_an_alias_is_created_with_its_policy(lead: Client, version: AdapterVersion, cluster: Cluster) -> None:
    page = text_of(lead.get(f"/aliases/new/?version={version.pk}"))
    assert f'<option value="{version.pk}" selected>' in page
    sent = {"name": "compliance", "version": version.pk, "cluster": cluster.pk, "quorum": 1, "cache_s": 60}
    assert lead.post("/aliases/new/", {**sent, "cache_mb": 2})["Location"] == "/aliases/eu.compliance/"
    assert Alias.objects.get().policy == {"quorum": 1, "cache": {"ttl_s": 60, "max_bytes": 2 << 20}}


def test_a_policy_is_changed_and_a_protected_one_after_approval(lead: Client, alias: Alias) -> None:
    lead.post("/aliases/eu.compliance/policy/", {"quorum": 1, "reason": "goes live"})
    alias.refresh_from_db()
    assert alias.policy == {"quorum": 1}
    answer = lead.post("/aliases/eu.compliance/policy/", {"quorum": 2, "reason": "two of us"})
    approval = Approval.objects.get()
    assert (answer["Location"], approval.policy) == (f"/approvals/{approval.pk}/", {"quorum": 2})
    alias.refresh_from_db()
    assert alias.policy == {"quorum": 1}


def test_a_policy_keeps_what_its_form_does_not_name(lead: Client, alias: Alias) -> None:
    wanted = [{"task": "arc", "metric": "acc", "at_least": 0.5}]
    cache = {"ttl_s": 60, "max_bytes": 1_500_000}
    Alias.objects.filter(pk=alias.pk).update(policy={"evaluations": wanted, "cache": cache})
    page = text_of(lead.get("/aliases/eu.compliance/policy/"))
    assert 'name="cache_mb" value="1"' in page
    lead.post("/aliases/eu.compliance/policy/", {"quorum": 0, "cache_s": 60, "cache_mb": 1, "reason": "no change"})
    alias.refresh_from_db()
    assert alias.policy == {"evaluations": wanted, "cache": cache}


def test_scores_that_a_promotion_needs_are_set_by_the_form(lead: Client, alias: Alias) -> None:
    sent = {"quorum": 0, "reason": "exams", "evaluations": "our_law acc >= 0.6\nour_law em,strict <= 1"}
    lead.post("/aliases/eu.compliance/policy/", sent)
    alias.refresh_from_db()
    assert alias.policy["evaluations"] == [
        {"task": "our_law", "metric": "acc", "at_least": 0.6},
        {"task": "our_law", "metric": "em,strict", "at_most": 1.0},
    ]
    assert "our_law acc &gt;= 0.6" in text_of(lead.get("/aliases/eu.compliance/policy/"))
    refused = lead.post("/aliases/eu.compliance/policy/", {**sent, "evaluations": "acc above 0.6"})
    assert (refused.status_code, "is not TASK METRIC" in text_of(refused)) == (422, True)
    lead.post("/aliases/eu.compliance/policy/", {**sent, "evaluations": ""})
    alias.refresh_from_db()
    assert alias.policy == {}


FORMS = ["/adapters/new/", "/clusters/new/", "/aliases/new/", "/new-base-model/", "/aliases/eu.compliance/policy/"]


@pytest.mark.parametrize("path", FORMS)
def test_a_viewer_gets_no_form(client: Client, bob: User, alias: Alias, path: str) -> None:
    client.force_login(bob)
    assert client.get(path).status_code == 403
    assert client.post(path, {"reason": "x"}).status_code in (302, 403)


def test_the_checklist_goes_on_with_the_first_step_that_is_not_done(
    lead: Client, base_model: BaseModel, project: Project
) -> None:
    page = text_of(lead.get("/first-steps/"))
    assert page.count("✓") == 2
    assert 'class="button" href="/clusters/new/"' in page


def test_before_the_first_project_the_checklist_sends_its_administrator_to_nobody(root: User, client: Client) -> None:
    page = text_of(client.get("/first-steps/"))
    assert ("ask an admin" in page, page.count("As soon as there is a project.")) == (False, 5)


def test_the_checklist_says_whose_step_it_is(client: Client, project: Project, base_model: BaseModel) -> None:
    client.force_login(member("tom", project, Membership.Role.TRAINER))
    page = text_of(client.get("/first-steps/"))
    assert "ask an admin" in page
    assert "/clusters/new/" not in page
