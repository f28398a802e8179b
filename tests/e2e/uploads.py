"""The parts of pages that only an upload shows: the answer of its check, and the report of the version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.models import AdapterVersion
from registry.uploads import verification
from tests.builders import write_adapter


def show_refused_upload(page: Any, folder: Path) -> None:
    """Leaves the browser on the adapter's page, with a folder chosen that is refused for two reasons."""
    page.goto("/adapters/eu.dora/upload/")
    page.get_by_label("Or its folder").set_input_files(
        write_adapter(folder, seed=8, use_dora=True, base_model_name_or_path="acme/our-copy", new_option=None)
    )
    page.get_by_role("heading", name="It is refused").wait_for()
    page.evaluate("window.scrollTo(0, 0)")


def show_report(page: Any, folder: Path) -> None:
    """Leaves the browser on the page of a version that was uploaded and checked."""
    page.goto("/adapters/eu.dora/upload/")
    page.get_by_label("Or its folder").set_input_files(
        write_adapter(folder, seed=9, base_model_name_or_path="unsloth/tiny-bnb-4bit", new_option=None)
    )
    page.get_by_role("heading", name="It can be published").wait_for()
    page.get_by_role("button", name="Publish as the next version").click()
    page.wait_for_url("**/adapters/eu.dora/v*/")
    verification.check(AdapterVersion.objects.latest("pk"))
    page.locator("h1 .badge", has_text="ready").wait_for()
    page.reload()
