"""The details of a page in use: one click changes colours, Esc closes, times stay true, a pressed button shows it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, Alias
from tests.builders import rows, write_jsonl
from tests.fakes.playground_router import running_playground_router
from training.models import Dataset, TrainingRun

GROUND = "getComputedStyle(document.body).backgroundColor"


def theme_of(page: Any) -> str:
    red = int(page.evaluate(GROUND).split("(")[1].split(",")[0])
    return "dark" if red < 100 else "light"


@pytest.mark.parametrize(("system", "button"), [("dark", "☀ Light"), ("light", "☾ Dark")])
@pytest.mark.slow
def test_one_click_changes_the_colours_whatever_the_system_has(page: Any, system: str, button: str) -> None:
    page.emulate_media(color_scheme=system)
    assert theme_of(page) == system
    buttons = page.locator(".side button[name=theme]:visible").all_inner_texts()
    assert buttons == [button]
    other = {"dark": "light", "light": "dark"}[system]
    for chosen in (other, system):
        page.locator(".side button[name=theme]:visible").click()
        page.locator(f"html[data-theme={chosen}]").wait_for(state="attached")
        assert theme_of(page) == chosen


@pytest.mark.slow
def test_esc_closes_the_menu_of_a_phone_and_a_question(page: Any, ci: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("details.menu summary").click()
    assert page.locator("details.menu[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("details.menu[open]").count() == 0
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.goto("/tokens/")
    page.locator("details.revoke summary").first.click()
    page.locator("details.revoke input").first.focus()
    page.keyboard.press("Escape")
    assert page.locator("details.revoke[open]").count() == 0


@pytest.mark.slow
def test_how_long_ago_something_was_stays_true(page: Any, version: AdapterVersion) -> None:
    page.clock.install(time=version.created_at.astimezone(UTC) + timedelta(seconds=2))
    page.goto("/adapters/dora/")
    time = page.locator("time[data-shape=ago]").first
    before = time.inner_text()
    page.clock.run_for(5 * 60_000)
    assert (before, time.inner_text()) == ("now", "5 minutes ago")


@pytest.fixture
def router(settings: Any) -> Iterator[None]:
    with running_playground_router() as url:
        settings.ROUTER_URL = url
        yield


@pytest.mark.slow
def test_the_playground_shows_a_press_and_the_answer_without_a_new_page(
    page: Any, alias: Alias, router: None, alice: User
) -> None:
    page.goto("/playground/?models=compliance")
    page.evaluate("window.untouched = true")
    page.get_by_label("Prompt").fill("first line\nsecond line")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("The answer is complete.").wait_for(state="attached")
    page.locator("#answers .answer", has_text="within four hours").wait_for()
    assert page.evaluate("window.untouched") is True
    assert page.get_by_label("Prompt").input_value() == "first line\nsecond line"
    page.get_by_label("Model").fill("nothing-of-ours")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("No single project of yours has all these models").wait_for()


@pytest.mark.slow
def test_a_pressed_button_says_that_it_works(page: Any, alias: Alias) -> None:
    page.goto("/aliases/compliance/policy/")
    page.route("**/healthz", lambda route: None)
    page.locator("#id_reason").fill("x")
    page.get_by_role("button", name="Save").click()
    page.locator("button[aria-busy=true]").wait_for()


@pytest.mark.slow
def test_a_training_takes_three_clicks_from_the_overview(
    page: Any, adapter: Adapter, dataset: Dataset, alice: User, tmp_path: Path
) -> None:
    """With two adapters and two datasets: the adapter, the dataset, and the button."""
    by = alice.as_actor()
    Adapter.create(project=adapter.project, slug="second", base_model=adapter.base_model, by=by)
    file = write_jsonl(tmp_path / "other.jsonl", rows(60))
    Dataset.create(project=adapter.project, name="other", file=file, filename="other.jsonl", by=by)
    page.goto("/")
    page.get_by_role("link", name="dora", exact=True).click()
    page.get_by_label("Dataset", exact=True).select_option(label="incidents")
    page.get_by_text("The same run as run.yaml").wait_for()
    page.get_by_role("button", name="Queue the run").click()
    page.get_by_text("queued").first.wait_for()
    run = TrainingRun.objects.get()
    assert (run.adapter, run.dataset) == (adapter, dataset)


@pytest.mark.slow
def test_the_printed_answer_has_neither_menu_nor_form(page: Any, alias: Alias) -> None:
    page.goto(f"/aliases/{alias.ref}/responsibility/")
    parts = [page.locator(name) for name in ("nav", "form.find", "#answer", "svg.served")]
    assert [part.first.is_visible() for part in parts] == [True] * 4
    page.emulate_media(media="print")
    assert [part.first.is_visible() for part in parts] == [False, False, True, True]
