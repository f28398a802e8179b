"""A slow and a broken network, a reload and a closed tab: nothing typed is lost, nothing is sent twice, and the page
says what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout
from tests.waiting import wait_until
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run

REASON = "the evaluation is better"


@pytest.fixture
def form(page: Any, alias: Alias, candidate: AdapterVersion) -> Any:
    """The page of a version with a rollout's reason typed."""
    page.goto("/adapters/dora/v2/")
    page.get_by_label("Alias").select_option(label="compliance")
    page.locator("#id_reason").fill(REASON)
    return page


def start(form: Any) -> None:
    form.get_by_role("button", name="Start the rollout").click()


def wait_for(page: Any, condition: Callable[[], object]) -> None:
    """Return when the condition holds; the handlers of the page's requests run meanwhile."""
    wait_until(lambda: page.wait_for_timeout(10) or condition())


@pytest.mark.slow
def test_offline_nothing_is_sent_and_what_was_typed_stays(form: Any) -> None:
    form.context.set_offline(True)
    start(form)
    form.get_by_role("alert").get_by_text("Nothing was sent, and what you typed is still here").wait_for()
    assert form.locator("#id_reason").input_value() == REASON
    assert not Rollout.objects.exists()
    form.context.set_offline(False)
    start(form)
    form.get_by_text("until every healthy replica").wait_for()
    assert Rollout.objects.get().reason == REASON


@pytest.mark.slow
def test_a_slow_network_says_so_and_a_second_click_sends_nothing(form: Any) -> None:
    sent: list[str] = []
    form.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    waiting: list[Any] = []
    form.route("**/healthz", lambda route: waiting.append(route))
    start(form)
    form.get_by_text("Sending… Stay on this page.").wait_for()
    start(form)
    assert (len(waiting), sent) == (1, [])
    waiting[0].continue_()
    form.get_by_text("until every healthy replica").wait_for()
    assert (len(sent), Rollout.objects.count()) == (1, 1)


@pytest.mark.slow
def test_a_connection_that_breaks_while_sending_loses_nothing_typed(form: Any) -> None:
    form.route("**/promote/", lambda route: route.abort("connectionreset"))
    with form.expect_event("requestfailed", lambda request: request.method == "POST"):
        start(form)
    form.unroute("**/promote/")
    form.goto("/adapters/dora/v2/")
    assert form.locator("#id_reason").input_value() == REASON
    start(form)
    form.get_by_text("until every healthy replica").wait_for()
    form.goto("/adapters/dora/v2/")
    assert form.locator("#id_reason").input_value() == ""


@pytest.mark.slow
def test_a_page_that_cannot_renew_itself_says_since_when_and_goes_on(
    page: Any,
    version: AdapterVersion,
    dataset: Dataset,
    alice: User,
) -> None:
    run = launch_run(adapter=version.adapter, dataset=dataset, by=alice.as_actor())
    page.goto(f"/training/{run.pk}/")
    page.context.set_offline(True)
    page.get_by_text("This page shows what it knew then").wait_for()
    TrainingRun.objects.filter(pk=run.pk).update(progress={"step": 3, "total": 7})
    page.context.set_offline(False)
    page.get_by_text("Step 3 of 7").wait_for()
    page.get_by_text("This page shows what it knew then").wait_for(state="detached")


@pytest.mark.slow
def test_a_page_that_renews_itself_does_not_hold_who_is_leaving_it(
    page: Any, version: AdapterVersion, dataset: Dataset, alice: User
) -> None:
    run = launch_run(adapter=version.adapter, dataset=dataset, by=alice.as_actor())
    page.goto(f"/training/{run.pk}/")
    polls: list[Any] = []
    page.route("**/training/*/?seen=*", lambda route: polls.append(route))
    wait_for(page, lambda: polls)
    ways: list[Any] = []
    page.route("**/datasets/", lambda route: ways.append(route))
    page.evaluate("setTimeout(() => document.querySelector('a[href=\"/datasets/\"]').click())")
    wait_for(page, lambda: ways)
    run.cancel(by=alice.as_actor())
    with page.expect_response("**/training/*/?seen=*") as answered:
        polls[0].continue_()
    assert answered.value.headers["hx-refresh"] == "true"
    ways[0].continue_()
    page.get_by_role("heading", name="Datasets").wait_for()
    page.wait_for_load_state("networkidle")


@pytest.mark.slow
def test_a_reload_and_a_closed_tab_keep_what_was_typed_until_it_is_discarded(
    page: Any,
    version: AdapterVersion,
    dataset: Dataset,
) -> None:
    page.goto("/training/new/")
    page.get_by_label("Dataset", exact=True).select_option(label="incidents")
    page.locator("#id_steps").fill("77")
    page.reload()
    assert page.locator("#id_steps").input_value() == "77"
    again = page.context.new_page()
    page.close()
    again.goto("/training/new/")
    assert again.locator("#id_steps").input_value() == "77"
    assert again.get_by_label("Dataset", exact=True).input_value() == str(dataset.pk)
    again.get_by_role("button", name="Discard it").click()
    again.reload()
    assert again.locator("#id_steps").input_value() == "40"


@pytest.mark.slow
def test_a_code_is_no_more_kept_than_a_password(page: Any) -> None:
    page.goto("/second-factor/")
    page.get_by_label("Code").fill("123456")
    page.reload()
    assert page.get_by_label("Code").input_value() == ""
    assert "123456" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.slow
def test_a_refused_verb_keeps_its_reason(page: Any, alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    by = alice.as_actor()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    rollout.started(by=by)
    page.goto(f"/rollouts/{rollout.pk}/")
    page.locator("#promote-reason").fill(REASON)
    rollout.set_weight(40, reason="meanwhile", by=by)
    page.get_by_role("button", name="Promote").click()
    page.locator(".messages .bad").wait_for()
    assert page.locator("#promote-reason").input_value() == REASON


@pytest.mark.slow
def test_the_next_person_on_this_device_sees_nothing_of_it(form: Any) -> None:
    form.get_by_role("button", name="Sign out").click()
    form.get_by_role("button", name="Sign in").wait_for()
    assert form.evaluate("Object.keys(localStorage).length") == 0
