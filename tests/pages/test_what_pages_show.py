"""What stands on single pages: counts that are right, lineage and traffic of an adapter, room on a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import ApiToken, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, Response, Rollout
from tests.builders import write_adapter
from tests.markup import markup
from tests.pages.plans import PLAN
from training.models import CheckpointAnswer, Dataset, RankAnalysis, TrainingRun
from training.models.hyperparameters import with_defaults
from training.runs.launch import launch_run


@pytest.fixture(autouse=True)
def signed_in(alice: User, client: Client) -> None:
    client.force_login(alice)


def test_the_overview_counts_the_jobs_that_it_lists(
    adapter: Adapter, dataset: Dataset, alice: User, client: Client
) -> None:
    for _ in range(2):
        launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    assert "<strong>2</strong> jobs in progress" in client.get("/").content.decode()


def test_an_adapter_shows_what_its_versions_came_from_and_who_asked_them(
    adapter: Adapter, alias: Alias, alice: User, client: Client, tmp_path: object
) -> None:
    lineage = {"run": "0b3f2a51-96a5-4d3c-8f57-6d5e2f2b7a10", "dataset": "ab" * 32}
    folder = write_adapter(tmp_path / "made", seed=7)  # type: ignore[operator]
    published = AdapterVersion.publish(adapter, folder, method="lora", by=alice.as_actor(), lineage=lineage)
    for number in range(3):
        Response.objects.create(
            id=f"r{number}",
            project=adapter.project,
            version=published,
            arm="none",
            at=now(),
            alias_name="compliance",
            status=200,
            is_sticky=True,
            total_ms=250,
        )
    page = client.get(reverse("adapter", args=["dora"])).content.decode()
    for text in (
        "data abababab",
        "run 0b3f2a51",
        f"v{published.number} LoRA",
        "compliance",
        "3 answers, 250 ms",
        "published the version",
    ):
        assert text in page, text


def test_a_cluster_shows_slots_memory_and_what_is_missing(
    alias: Alias, version: AdapterVersion, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    full, empty = (alias.cluster.add_replica(url=f"http://127.0.0.1:{port}", by=alice.as_actor()) for port in (1, 2))
    full.saw({}, "1")
    full.loaded = {version.served_name: "/a", candidate.served_name: "/b"}
    full.save()
    empty.missed("It did not answer.")
    page = markup(client.get(reverse("cluster", args=["cpu"])))
    for text in ("2 of 8 taken, 6 free", "0 of 8 taken, 8 free", "1 adapter; 1 missing", "unreachable"):
        assert text in page, text
    kilobytes = (version.size_bytes + candidate.size_bytes) / 1024
    assert f"{kilobytes:.1f}\xa0KB of adapter weights are here" in page
    assert re.search("2 of 8", client.get(reverse("clusters")).content.decode())


def test_a_slot_has_room_for_the_highest_rank_in_every_module(alias: Alias) -> None:
    widths = 32 + 24 + 24 + 32 + 48 + 48 + 48
    assert alias.cluster.slot_bytes == 2 * 64 * 2 * widths
    assert alias.cluster.slots_bytes == 8 * alias.cluster.slot_bytes


def test_rollouts_are_searched_and_say_who_gets_the_candidate(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client, make_version: Callable[..., AdapterVersion]
) -> None:
    by = alice.as_actor()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="June", by=by)
    assert ">nobody<" in markup(client.get("/rollouts/?q=june"))
    rollout.started(by=by)
    assert ">5 %<" in markup(client.get("/rollouts/?status=running&sort=-opened"))
    rollout.promote(reason="holds", by=by)
    assert ">everybody<" in markup(client.get("/rollouts/"))
    assert "No rollout matches." in client.get("/rollouts/?q=august").content.decode()


def test_runs_are_narrowed_by_the_address(adapter: Adapter, dataset: Dataset, alice: User, client: Client) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    assert str(run) in client.get("/training/?q=dora&status=queued").content.decode()
    assert "No run matches." in client.get("/training/?status=failed").content.decode()


def planned(dataset: Dataset, adapter: Adapter, alice: User, **ranks: int) -> RankAnalysis:
    """An analysis with the plan of a tiny model, in which some modules have other ranks."""
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 4},
        by=alice.as_actor(),
    )
    modules = [
        {**module, "rank": ranks.get(module["name"].split(".")[-1], module["rank"])} for module in PLAN["modules"]
    ]
    RankAnalysis.objects.filter(pk=analysis.pk).update(plan={**PLAN, "modules": modules}, status="succeeded")
    return analysis


def test_two_plans_stand_side_by_side(adapter: Adapter, dataset: Dataset, alice: User, client: Client) -> None:
    one, other = (planned(dataset, adapter, alice, **ranks) for ranks in ({}, {"up_proj": 8}))
    assert f'value="{other.pk}"' in client.get(reverse("rank-analysis", args=[one.pk])).content.decode()
    page = client.get(reverse("compare-plans", args=[one.pk]) + f"?to={other.pk}").content.decode()
    assert "2 modules have the same rank in both" in page
    assert page.count(">+4<") == 2
    RankAnalysis.objects.filter(pk=other.pk).update(plan=None)
    assert client.get(reverse("compare-plans", args=[one.pk]) + f"?to={other.pk}").status_code == 422


def test_a_run_shows_what_its_checkpoints_said_and_its_clone_asks_the_same(
    adapter: Adapter, dataset: Dataset, alice: User, client: Client
) -> None:
    body = {"adapter": adapter.pk, "dataset": dataset.pk, "method": "lora", **with_defaults({})}
    refused = client.post(reverse("new-training-run"), {**body, "prompts": "no colon here", "anyway": "on"})
    assert "Write NAME: PROMPT" in refused.content.decode()
    prompts = "deadline: When must it be reported?\nwho: To whom?"
    created = client.post(reverse("new-training-run"), {**body, "prompts": prompts, "anyway": "on"})
    run = TrainingRun.objects.get()
    assert run.prompts == {"deadline": "When must it be reported?", "who": "To whom?"}
    CheckpointAnswer.keep(run, 0, {"deadline": "Never."})
    for _ in range(2):
        CheckpointAnswer.keep(run, 20, {"deadline": "Within four hours."})
    page = client.get(created["Location"]).content.decode()
    for text in ("When must it be reported?", "0, the base", "Never.", "Within four hours."):
        assert page.count(text) == 1, text
    listed = client.get(f"/api/v1/training-runs/{run.pk}/answers/").json()
    assert [(row["step"], row["answer"]) for row in listed] == [(0, "Never."), (20, "Within four hours.")]
    assert "deadline: When must it be reported?" in client.get(f"/training/new/?clone={run.pk}").content.decode()


def test_datasets_and_analyses_are_narrowed_by_the_address(
    adapter: Adapter, dataset: Dataset, alice: User, client: Client
) -> None:
    planned(dataset, adapter, alice)
    assert "incidents" in client.get("/datasets/?q=incid&status=ready&sort=-rows").content.decode()
    assert "No dataset matches." in client.get("/datasets/?status=erased").content.decode()
    assert "incidents" in client.get("/rank-analyses/?q=tiny&status=succeeded").content.decode()
    assert "No analysis matches." in client.get("/rank-analyses/?q=other").content.decode()


def test_a_token_is_revoked_with_a_reason_and_not_without(ci: str, client: Client) -> None:
    token = ApiToken.objects.get()
    verb = reverse("revoke-token", args=[token.pk])
    assert client.post(verb).status_code == 422
    token.refresh_from_db()
    assert token.revoked_at is None
    client.post(verb, {"reason": "It was in a log."})
    token.refresh_from_db()
    assert token.revoked_at is not None
    [event, *_] = AuditEvent.objects.about(token)
    assert (event.tag, event.reason) == ("token:revoked", "It was in a log.")
