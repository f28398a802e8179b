"""Times stand in the reader's zone and tell the exact one; without JavaScript they stand in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Response

AT = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)


@pytest.fixture
def answer(page: Any, version: Any, alice: User) -> str:
    response = Response.objects.create(
        id="r-17", project=version.project, version=version, arm="none", at=AT, status=200, is_sticky=True, total_ms=250
    )
    return f"/responses/?id={response.pk}"


@pytest.mark.parametrize(
    ("script", "text", "title"),
    [(True, "2 Mar 2026, 07:30 GMT+9", "2026-03-01T22:30:00+00:00"), (False, "1 Mar 2026, 22:30 UTC", None)],
)
@pytest.mark.slow
def test_a_reader_in_tokyo(browser: Any, page: Any, answer: str, script: bool, text: str, title: str | None) -> None:
    state = page.context.storage_state()
    context = browser.new_context(
        base_url=page.url, storage_state=state, timezone_id="Asia/Tokyo", locale="en-US", java_script_enabled=script
    )
    in_tokyo = context.new_page()
    in_tokyo.goto(answer)
    time = in_tokyo.locator("time").first
    assert time.inner_text().replace("\u202f", " ") == text
    assert (time.get_attribute("title") or "").splitlines()[-1:] == ([title] if title else [])
    context.close()
