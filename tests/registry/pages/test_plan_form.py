"""The form of a rollout's plan: previews, own steps and guardrails, and errors beside what was typed."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout
from registry.pages.plan_form import PlanForm

OWN = {
    "plan": "own",
    "reason": "slower",
    "steps-TOTAL_FORMS": "3",
    "steps-INITIAL_FORMS": "0",
    "steps-0-weight": "5",
    "steps-0-hold": "10",
    "steps-0-min_samples": "200",
    "steps-1-weight": "40",
    "steps-1-approval": "on",
    "rails-TOTAL_FORMS": "2",
    "rails-INITIAL_FORMS": "0",
    "rails-0-metric": "latency",
    "rails-0-margin": "0.5",
    "rails-0-level": "0.95",
    "rails-0-kind": "signal",
    "rails-1-kind": "guardrail",
}
STEPS = [
    {"weight": 5.0, "hold_s": 600, "min_samples": 200},
    {"weight": 40.0, "hold_s": 0, "min_samples": 0, "approval": True},
]
RAILS = [{"metric": "latency", "margin": 0.5, "kind": "signal", "level": 0.95}]


def address(version: AdapterVersion) -> str:
    return reverse("promote", args=[version.adapter.ref, version.number])


def test_own_steps_and_guardrails_open_a_rollout(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    client.post(address(candidate), {**OWN, "alias": alias.pk})
    rollout = Rollout.objects.get()
    assert (rollout.steps, rollout.guardrails, rollout.weight) == (STEPS, RAILS, 5)


def test_the_preview_opens_nothing_and_keeps_what_was_typed(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    page = client.post(address(candidate), {**OWN, "alias": alias.pk, "preview": "1"}).content.decode()
    assert not Rollout.objects.exists()
    assert "What this plan will do" in page
    assert "Latency p95: worse by more than 0.5 seconds pauses" in page
    assert 'name="steps-0-hold" value="10"' in page
    more = client.post(address(candidate), {**OWN, "alias": alias.pk, "more": "1"}).content.decode()
    assert 'name="steps-TOTAL_FORMS" value="5"' in more


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps-1-weight": "4"}, "each step&#x27;s weight must be above the one before"),
        ({"steps-1-weight": "80"}, "with guardrails the last weight is 50 or less"),
        ({"rails-0-metric": "error_rate"}, "a quantile is in seconds"),
        ({"rails-1-metric": "refusal_rate", "rails-1-margin": "1"}, "needs a regular expression"),
        ({"steps-0-weight": "x"}, "Mend the steps"),
        ({"plan": "by hand", "weight": ""}, "Give the share"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_in_place(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client, changes: dict[str, str], sentence: str
) -> None:
    client.force_login(alice)
    answer = client.post(address(candidate), {**OWN, "alias": alias.pk, **changes})
    assert answer.status_code == 422
    assert sentence in answer.content.decode()
    assert not Rollout.objects.exists()


def test_each_template_is_previewed_with_its_guardrails(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    page = client.get(reverse("version", args=[candidate.adapter.ref, candidate.number])).content.decode()
    assert "It takes at least 5 h 30 min and 1,500 users in" in " ".join(page.split())
    assert "Error rate: worse by more than 2 points rolls back" in page


def test_the_form_of_a_draft_holds_its_own_plan(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    draft = Rollout.create(
        alias=alias,
        candidate=candidate,
        steps=STEPS,
        guardrails=RAILS,
        checks={"schema": {"type": "object"}},
        reason="try",
        by=alice.as_actor(),
        draft=True,
    )
    client.force_login(alice)
    form = client.get(reverse("rollout", args=[draft.pk])).context["plan_form"]
    assert form["plan"].value() == "own"
    assert [row["hold"].value() for row in form.steps][:2] == [10, 0]
    removed: dict[str, Any] = {**OWN, "steps-INITIAL_FORMS": "2", "steps-0-weight": "", "steps-0-hold": ""}
    removed["steps-0-min_samples"] = ""
    client.post(reverse("move-rollout", args=[draft.pk, "edit"]), removed)
    draft.refresh_from_db()
    assert (draft.steps, draft.checks) == (STEPS[1:], {"schema": {"type": "object"}})


def test_no_plan_means_by_hand() -> None:
    form = PlanForm({"plan": "", "weight": "5", "reason": "x"})
    assert form.is_valid()
    assert (form.cleaned_data["steps"], form.cleaned_data["guardrails"]) == ([{"weight": 5.0}], [])
