"""`make screenshots`: every page with 40 adapters, 300 versions and 12 jurisdictions, wide and on a phone, light and
dark, into docs/screenshots. Not collected with the tests: pytest is given this file by name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import Project, User
from registry.models import AdapterVersion
from tests.e2e.recovery_codes import show_recovery_codes
from tests.pages.every_page import every_page
from tests.pages.realistic import World, cast
from training.models import Dataset

FOLDER = Path(__file__).parent.parent.parent / "docs" / "screenshots"
SIZES = {"wide": (1440, 900), "phone": (390, 844)}
TALLEST = 2400


@pytest.fixture
def urls(
    fresh_database: str, project: Project, alice: User, candidate: AdapterVersion, dataset: Dataset
) -> dict[str, str]:
    cast(project)
    return every_page(World(project, alice), candidate, dataset)


def photograph(page: Any, path: Path) -> None:
    """As WebP, which Playwright's own screenshots are not: a fifth of a PNG's bytes."""
    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height, "scale": 1}
    session = page.context.new_cdp_session(page)
    options = {"format": "webp", "quality": 60, "captureBeyondViewport": True, "clip": clip}
    path.write_bytes(base64.b64decode(session.send("Page.captureScreenshot", options)["data"]))
    session.detach()


def photograph_all(page: Any, name: str) -> None:
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            photograph(page, FOLDER / f"{name}-{size}-{theme}.webp")


def test_take_them(page: Any, urls: dict[str, str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, url in urls.items():
        page.goto(url, wait_until="networkidle")
        photograph_all(page, name)
    show_recovery_codes(page)
    photograph_all(page, "recovery-codes")
