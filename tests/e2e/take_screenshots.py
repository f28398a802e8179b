"""`make screenshots`: every page with 40 adapters, 300 versions and 12 jurisdictions, wide and on a phone, light and
dark, into docs/screenshots. Not collected with the tests: pytest is given this file by name."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import Project, User
from registry.models import Adapter, AdapterVersion, BaseModel
from tests.builders import rows, write_jsonl
from tests.byte_llama import save_model
from tests.e2e.further_pages import further_pages
from tests.e2e.recovery_codes import show_recovery_codes
from tests.e2e.uploads import show_refused_upload, show_report
from tests.lm.chat_tokenizer import TEMPLATES
from tests.pages.every_page import every_page
from tests.pages.realistic import World, cast
from tests.tiny_model import sentences
from training.lm.base_model import load_tokenizer
from training.models import Dataset
from training.runs.launch import launch_run
from training.worker.runner import work

ROOT = Path(__file__).parent.parent.parent
FOLDER, CASES = ROOT / "docs" / "screenshots", ROOT / "tests" / "cases"
SIZES = {"wide": (1440, 900), "phone": (390, 844)}
TALLEST = 2400
OVERFITS = {"rank": 8, "steps": 40, "batch_size": 4, "max_length": 128, "learning_rate": 0.02, "eval_steps": 2}


@pytest.fixture
def urls(
    fresh_database: str, project: Project, alice: User, candidate: AdapterVersion, dataset: Dataset
) -> dict[str, str]:
    cast(project)
    return every_page(World(project, alice), candidate, dataset)


@pytest.fixture
def chat_model(fresh_database: str, project: Project, alice: User) -> BaseModel:
    """A small model with random weights whose chat template is Qwen2.5's, as TRL has it."""
    model = BaseModel.objects.create(slug="small-chat", source="small-chat")
    save_model(model.folder)
    tokenizer = load_tokenizer(model.folder)
    tokenizer.chat_template = TEMPLATES["qwen2_5"].read_text()
    tokenizer.save_pretrained(model.folder)
    model.inspect()
    return model


def photograph(page: Any, path: Path) -> None:
    """As WebP, which Playwright's own screenshots are not: a fifth of a PNG's bytes."""
    height = min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height, "scale": 1}
    session = page.context.new_cdp_session(page)
    options = {"format": "webp", "quality": 45, "captureBeyondViewport": True, "clip": clip}
    path.write_bytes(base64.b64decode(session.send("Page.captureScreenshot", options)["data"]))
    session.detach()


def photograph_all(page: Any, name: str) -> None:
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        # The admin follows the system.
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            photograph(page, FOLDER / f"{name}-{size}-{theme}.webp")


def upload(page: Any, case: str) -> None:
    """Upload a case's file by the form; the page shows the new dataset afterwards."""
    page.goto("/datasets/")
    page.locator("#id_file").set_input_files(CASES / case)
    page.get_by_role("button", name="Check and store it").click()
    page.wait_for_url(re.compile(r"/datasets/\d+/$"))


def test_take_them(page: Any, urls: dict[str, str], alice: User, tmp_path: Path) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, url in urls.items():
        page.goto(url, wait_until="networkidle")
        photograph_all(page, name)
    show_refused_upload(page, tmp_path / "refused")
    photograph_all(page, "upload-check")
    show_report(page, tmp_path / "accepted")
    photograph_all(page, "upload-report")
    show_recovery_codes(page)
    photograph_all(page, "recovery-codes")
    for name, opened in further_pages(page, alice):
        photograph_all(opened, name)
    for name, url in {"admin": "/admin/", "admin-user": f"/admin/accounts/user/{alice.pk}/change/"}.items():
        page.goto(url)
        photograph_all(page, name)


def test_take_the_way_of_data(page: Any, chat_model: BaseModel, project: Project, alice: User, tmp_path: Path) -> None:
    """A file of ShareGPT, a conversation with tools and what its loss counts, and a run that overfits."""
    upload(page, "01_sharegpt.jsonl")
    photograph_all(page, "dataset-sharegpt")
    upload(page, "11c_tool_calls_with_text.jsonl")
    page.goto(f"{page.url}?base_model={chat_model.slug}&max_length=1024", wait_until="networkidle")
    photograph_all(page, "dataset-loss-spans")
    by = alice.as_actor()
    few = write_jsonl(tmp_path / "few.jsonl", rows(24))
    other = write_jsonl(tmp_path / "other.jsonl", sentences(40))
    adapter = Adapter.create(project=project, slug="few-rows", base_model=chat_model, by=by)
    data = Dataset.create(project=project, name="few rows", file=few, filename="few.jsonl", by=by)
    held_out = Dataset.create(project=project, name="other texts", file=other, filename="other.jsonl", by=by)
    fields = {"hyperparameters": OVERFITS, "validation_dataset": held_out}
    run = launch_run(adapter=adapter, dataset=data, anyway=True, by=by, **fields)
    work()
    page.goto(f"/training/{run.pk}/", wait_until="networkidle")
    photograph_all(page, "training-run-best-checkpoint")
