"""Markup that is not ours: the admin is accessible at both widths and in both colours, Swagger's faults are listed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import Alias
from tests.e2e.axe import violations

ROOT = Path(__file__).parent.parent.parent
PATHS = (
    "/admin/",
    "/admin/password_change/",
    "/admin/accounts/user/",
    "/admin/accounts/user/add/",
    "/admin/accounts/user/{user}/change/",
    "/admin/accounts/project/",
    "/admin/accounts/project/{project}/change/",
    "/admin/accounts/apitoken/",
    "/admin/audit/auditevent/",
    "/admin/registry/alias/",
    "/admin/registry/alias/{alias}/change/",
)


GROUND = "getComputedStyle(document.body).backgroundColor"
WAYS = [(theme, width) for theme in ("light", "dark") for width in (1440, 390)]
# Lists of rows share one template: each is seen wide in light colours, and on a phone in dark ones.
WAYS_OF_LISTS = (("light", 1440), ("dark", 390))


def faults_at_both_widths(page: Any, script: str, ways: Sequence[tuple[str, int]] = WAYS) -> list[str]:
    faults = []
    for theme, width in ways:
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 900})
        faults += [f"{theme} {width}: {fault}" for fault in violations(page, script)]
    return faults


def lists() -> list[str]:
    """Every list of rows that the admin has, but those of PATHS."""
    kinds = [model._meta for model in admin.site._registry]
    addresses = [reverse(f"admin:{kind.app_label}_{kind.model_name}_changelist") for kind in kinds]
    return [address for address in addresses if address not in PATHS]


@pytest.mark.slow
def test_the_admin_is_accessible(page: Any, axe: str, alias: Alias, alice: User, ci: str) -> None:
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True)
    ids = {"user": alice.pk, "project": alias.project_id, "alias": alias.pk}
    faults = []
    for path in (path.format(**ids) for path in PATHS):
        assert page.goto(path).status == 200, path
        faults += [f"{path} {fault}" for fault in faults_at_both_widths(page, axe)]
    for path in lists():
        assert page.goto(path).status == 200, path
        faults += [f"{path} {fault}" for fault in faults_at_both_widths(page, axe, WAYS_OF_LISTS)]
    assert "\n".join(faults) == ""


@pytest.mark.slow
def test_the_admin_has_the_products_name_and_the_colours_that_were_chosen(page: Any, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True)
    grounds = {}
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.goto("/admin/")
        assert page.locator("#site-name").inner_text() == "AdapterHub"
        grounds[theme] = page.evaluate(GROUND)
    assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 25)"}
    page.get_by_role("button", name="Light").click()
    page.wait_for_function("document.documentElement.dataset.theme === 'light'")
    assert page.evaluate(GROUND) == grounds["light"]
    page.goto("/")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.get_by_role("button", name="Dark").click()
    page.locator("html[data-theme=dark]").wait_for()
    page.emulate_media(color_scheme="light")
    page.goto("/admin/")
    assert page.evaluate(GROUND) == grounds["dark"]


@pytest.mark.slow
def test_the_faults_of_swaggers_own_markup_are_listed(page: Any, axe: str) -> None:
    page.goto("/api/docs/")
    # Swagger draws some two hundred operations, which takes a busy machine longer than a minute.
    page.locator(".opblock").first.wait_for(timeout=120_000)
    kinds = {fault.split(" ")[2].removesuffix(":") for fault in faults_at_both_widths(page, axe)}
    listed = (ROOT / "docs/api.md").read_text().partition("## Accessibility of the description")[2]
    section = listed.partition("\n## ")[0]
    assert kinds == set(re.findall(r"^- `([\w-]+)`", section, re.M))
