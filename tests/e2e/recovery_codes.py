"""The one page that only a POST shows: the recovery codes, once, after the second factor was set up."""

from __future__ import annotations

from typing import Any

from tests.builders.people import app_code


def show_recovery_codes(page: Any) -> None:
    """Leaves the browser on the page; the person has a second factor from now on."""
    page.goto("/second-factor/")
    secret = page.locator("p.mono").inner_text()
    page.get_by_label("Password").fill("alice-long-password")
    page.get_by_label("Code").fill(app_code(secret))
    page.get_by_role("button", name="Switch it on").click()
    page.get_by_role("heading", name="Save these recovery codes").wait_for()
