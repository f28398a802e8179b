"""What somebody typed, in a real browser: it is shown as text on every page, and no script of theirs runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.webhooks.models import Webhook
from registry.models import Adapter, AdapterVersion, Alias, Rollout
from tests.builders import rows, write_jsonl
from training.models import Dataset, RunMetric
from training.runs.launch import launch_run

IMAGE = "<img src=x onerror=\"document.body.innerHTML='owned'\">"
CLOSING = '"></textarea></script><script>document.title="owned"</script>'
TYPED = f"{IMAGE}{CLOSING}"


@pytest.fixture
def pages(
    fresh_database: str,
    project: Project,
    alice: User,
    adapter: Adapter,
    alias: Alias,
    candidate: AdapterVersion,
    tmp_path: Path,
) -> list[str]:
    """The addresses of things whose every free text is hostile."""
    by = alice.as_actor()
    Project.objects.filter(pk=project.pk).update(name=TYPED)
    adapter.describe(by=by, description=TYPED, tags=[TYPED])
    alias.set_policy({"quorum": 1}, by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason=TYPED, by=by)
    file = write_jsonl(tmp_path / "typed.jsonl", [row | {"prompt": row["prompt"] + TYPED} for row in rows(200)])
    dataset = Dataset.create(project=project, name=TYPED[:100], file=file, filename="typed.jsonl", by=by)
    run = launch_run(adapter=adapter, dataset=dataset, by=by)
    RunMetric.objects.create(run=run, step=1, values={"loss": 1.0, IMAGE: 2.0})
    token, _ = ApiToken.issue(name=TYPED, project=project, scopes=["read"], created_by=alice, reason=TYPED)
    Webhook.objects.create(project=project, url=f"https://hook.example/{TYPED}", events=["token:*"])
    event = AuditEvent.objects.get(tag="rollout:created")
    paths = [
        f"adapters/{adapter.slug}",
        f"adapters/{adapter.slug}/v{candidate.number}",
        f"aliases/{alias.name}",
        f"rollouts/{rollout.pk}",
        f"approvals/{rollout.approvals.get().pk}",
        f"datasets/{dataset.pk}",
        f"training/{run.pk}",
        f"tokens/{token.pk}",
        f"audit/{event.pk}",
    ]
    lists = ["", "adapters", "rollouts", "approvals", "datasets", "training", "tokens", "webhooks", "audit", "settings"]
    return [f"/{place}/".replace("//", "/") for place in [*paths, *lists]]


@pytest.mark.threat("H3")
@pytest.mark.slow
def test_what_somebody_typed_is_text_on_every_page(
    page: Any,
    pages: list[str],
) -> None:
    hits = 0
    for url in pages:
        answer = page.goto(url)
        assert answer.status == 200, url
        assert page.locator("img[src='x']").count() == 0, url
        assert page.title() != "owned", url
        assert page.locator("h1").count() == 1, url
        hits += "onerror" in page.locator("body").inner_text()
    assert hits >= 8, "the pages show what was typed"
