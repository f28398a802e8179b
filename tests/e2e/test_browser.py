"""A person in a real browser, against a real web process on the test's own database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings

from adapterhub.accounts.models import User
from adapterhub.environment import home
from registry.models import AdapterVersion, Alias, Rollout
from tests.waiting import wait_until
from training.models import Dataset, TrainingRun

ROOT = Path(__file__).parent.parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def chromium() -> str:
    """The system's Chromium; a skip without it, unless the session requires browsers."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if "browser" in os.environ.get("ADAPTERHUB_REQUIRE", ""):
            pytest.fail("ADAPTERHUB_REQUIRE names browser, and there is no Chromium: apt-get install chromium")
        pytest.skip("no Chromium: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = chromium()
    # Playwright keeps an event loop in this thread; the test's own queries are still one at a time.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()
    del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture
def site(fresh_database: str) -> Iterator[str]:
    """A web process as in production; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = settings.DATABASES["default"]
    url = f"postgres://{database['USER']}@{quote(database['HOST'], safe='')}/{fresh_database}"
    command = [sys.executable, "-m", "uvicorn", "adapterhub.asgi:application", "--port", str(port), "--no-access-log"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "DATABASE_URL": url, "ADAPTERHUB_HOME": str(home())}
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz"), 30, "the web process answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own process
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


@pytest.fixture
def page(browser: Any, site: str, alice: User) -> Iterator[Any]:
    """Alice, signed in through the login page."""
    context = browser.new_context(base_url=site, viewport={"width": 1440, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/")
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill("alice-long-password")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()
    yield page
    context.close()
    assert errors == []


def test_a_wrong_password_is_refused(browser: Any, site: str, alice: User) -> None:
    page = browser.new_page(base_url=site)
    page.goto("/login/")
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill("guess")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Please enter a correct username and password").wait_for()
    page.close()


def test_launch_a_training(page: Any, version: AdapterVersion, dataset: Dataset) -> None:
    page.get_by_role("link", name="Training", exact=True).click()
    page.get_by_role("link", name="New training").click()
    page.get_by_label("Adapter").select_option(label="dora")
    page.get_by_label("Dataset").select_option(label="incidents")
    page.locator("#id_steps").fill("7")
    page.get_by_role("button", name="Queue the run").click()
    page.get_by_text("queued").first.wait_for()
    run = TrainingRun.objects.get()
    assert run.hyperparameters["steps"] == 7
    # The page follows the run by itself: what a worker reports appears without a reload.
    TrainingRun.objects.filter(pk=run.pk).update(progress={"step": 3, "total": 7})
    page.get_by_text("Step 3 of 7").wait_for()
    page.locator("summary", has_text="Cancel").click()
    page.locator(".revoke").get_by_label("Reason").fill("The data was wrong.")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").wait_for()
    run.refresh_from_db()
    assert run.status == "cancelled"


def test_promote_and_roll_back(page: Any, alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    page.goto("/adapters/dora/v2/")
    page.get_by_label("Alias").select_option(label="compliance")
    page.get_by_label("Reason").fill("lower loss")
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text("until every healthy replica").wait_for()
    Rollout.objects.get().started(by=alice.as_actor())
    page.get_by_text("each keeps the arm").wait_for()
    page.reload()
    page.locator("#promote-reason").fill("it holds")
    page.get_by_role("button", name="Promote").click()
    page.get_by_text("Everybody gets dora v2").wait_for()
    alias.refresh_from_db()
    assert alias.version == candidate
    page.locator("#rollback-reason").fill("3 a.m.")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Everybody gets dora v1").first.wait_for()
    alias.refresh_from_db()
    assert alias.version != candidate


@pytest.mark.parametrize("path", ["/", "/adapters/dora/v2/", "/aliases/compliance/", "/datasets/", "/training/new/",
                                  "/audit/"])  # fmt: skip
def test_no_page_is_wider_than_a_phone(
    page: Any, alias: Alias, candidate: AdapterVersion, dataset: Dataset, path: str
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
