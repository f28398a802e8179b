"""Every page in a real browser with a world of realistic size: accessible, no wider than a phone, light."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest

from adapterhub.accounts.models import Project, User
from registry.models import AdapterVersion
from tests.e2e.axe import violations
from tests.e2e.further_pages import NOWHERE, further_pages
from tests.e2e.recovery_codes import show_recovery_codes
from tests.pages.every_page import every_page
from tests.pages.realistic import World, cast
from training.models import Dataset

SCRIPT_BYTES = "performance.getEntriesByType('resource').filter(e => e.initiatorType == 'script')"
SCRIPT_BYTES += ".reduce((sum, e) => sum + e.decodedBodySize, 0)"


@pytest.fixture
def urls(
    fresh_database: str, project: Project, alice: User, candidate: AdapterVersion, dataset: Dataset
) -> dict[str, str]:
    cast(project)
    return every_page(World(project, alice, adapters=12, versions=48), candidate, dataset)


def faults(page: Any, script: str) -> list[str]:
    """Every rule wide in light colours and on a phone in dark ones; the colours in both other ways too."""
    page.set_viewport_size({"width": 1440, "height": 900})
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    faults_found = [f"light: {each}" for each in violations(page, script)]
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    faults_found += [f"dark: {each}" for each in violations(page, script, runOnly=["color-contrast"])]
    page.set_viewport_size({"width": 390, "height": 844})
    faults_found += [f"dark, phone: {each}" for each in violations(page, script)]
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    faults_found += [f"light, phone: {each}" for each in violations(page, script, runOnly=["color-contrast"])]
    width, loaded = page.evaluate("document.documentElement.scrollWidth"), page.evaluate(SCRIPT_BYTES)
    return (
        faults_found
        + [f"{width} px wide on a phone"] * (width > 390)
        + [f"{loaded} bytes of script"] * (loaded > 200_000)
    )


def listen(errors: list[str], tab: Any) -> None:
    """Note what the tab's console says is an error, but for the browser's own line on an address that is missing."""

    def note(message: Any) -> None:
        if message.type == "error" and not message.location["url"].endswith(NOWHERE):
            errors.append(f"{tab.url}: {message.text}")

    tab.on("console", note)
    tab.on("pageerror", lambda error: errors.append(f"{tab.url}: {error}"))


@pytest.mark.slow
def test_every_page_is_accessible_light_and_dark_fits_a_phone_and_loads_little_script(
    page: Any,
    urls: dict[str, str],
    axe: str,
    alice: User,
) -> None:
    faults_of = {}
    errors: list[str] = []
    watch = partial(listen, errors)
    watch(page)
    # A colour on its way from one theme to the other is nobody's colour.
    page.emulate_media(reduced_motion="reduce")
    for name, url in urls.items():
        page.goto(url)
        faults_of[name] = faults(page, axe)
    show_recovery_codes(page)
    faults_of["recovery-codes"] = faults(page, axe)
    for name, opened in further_pages(page, alice, watch):
        faults_of[name] = faults(opened, axe)
    assert errors == []
    assert "\n".join(f"{name}: {each}" for name, faulty in faults_of.items() for each in faulty) == ""


@pytest.mark.slow
def test_every_page_can_be_read_without_javascript(page: Any, urls: dict[str, str]) -> None:
    context = page.context.browser.new_context(
        base_url=page.url, java_script_enabled=False, storage_state=page.context.storage_state()
    )
    plain = context.new_page()
    for name, url in urls.items():
        answer = plain.goto(url)
        assert answer.status == 200, name
        assert plain.get_by_role("heading", level=1).count() == 1, name
        assert plain.get_by_text(re.compile(r"^Loading(…|\.\.\.)")).count() == 0, name
    context.close()
