"""Pages and logs say what is so in sentences of ours: nothing that does not apply, and no words of a library."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from adapterhub.jobs.child import Child
from registry.models import Adapter, Cluster, Replica
from registry.serving.reconciler import reconcile
from tests.builders.rows import rows, write_jsonl
from training.models import Dataset

WARNS = "import warnings; warnings.warn('old call'); warnings.warn('gone soon', FutureWarning); print('step 1')"


@pytest.fixture(autouse=True)
def signed_in(alice: User, client: Client) -> None:
    client.force_login(alice)


def page_of(client: Client, path: str, **fields: object) -> str:
    answer = client.post(path, fields) if fields else client.get(path)
    return " ".join(answer.content.decode().split())


def uploaded(project: Project, alice: User, lines: list[dict[str, str]], folder: Path) -> Dataset:
    file = write_jsonl(folder / "more.jsonl", lines)
    return Dataset.create(project=project, name="more", file=file, filename="more.jsonl", by=alice.as_actor())


def test_only_a_file_with_documents_is_said_to_be_divided_by_them(
    project: Project, alice: User, client: Client, tmp_path: Path
) -> None:
    without = [{"prompt": "the same question", "completion": f"answer {n}"} for n in range(20)] + rows(60)
    page = page_of(client, reverse("dataset", args=[uploaded(project, alice, without, tmp_path).pk]))
    assert "held out" in page
    assert "split by document" not in page


def test_two_faults_of_a_file_have_a_sentence_each(
    project: Project, alice: User, client: Client, tmp_path: Path
) -> None:
    first, *others = rows(120)
    faulty = [first, first, {**first, "completion": "another answer"}, *others]
    page = page_of(client, reverse("dataset", args=[uploaded(project, alice, faulty, tmp_path).pk]))
    assert "1 row is an exact copy of another" in page
    assert "keep one of them" in page
    assert "such line" not in page


def test_a_form_that_was_filled_in_is_told_what_is_wrong(adapter: Adapter, dataset: Dataset, client: Client) -> None:
    """Not to choose what was chosen."""
    page = page_of(client, reverse("new-training-run"), adapter=adapter.pk, dataset=dataset.pk, steps="many", check="1")
    assert "Choose an adapter and a dataset" not in page
    assert "What is missing or wrong stands below" in page


def test_an_alarm_about_a_replica_that_is_away_is_in_our_words(cluster: Cluster, client: Client) -> None:
    replica = Replica.objects.create(cluster=cluster, url="http://127.0.0.1:9")
    reconcile()
    replica.refresh_from_db()
    assert replica.message == "It does not answer."
    for path in (reverse("cluster", args=[cluster.slug]), reverse("overview"), reverse("clusters")):
        assert "HTTPConnection" not in page_of(client, path)


def test_the_log_of_a_job_has_no_warnings_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    (tmp_path / "noisy.py").write_text(WARNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child(["noisy"], tmp_path / "events", tmp_path / "log")
    assert child.wait(30) == 0
    assert (tmp_path / "log").read_text() == "step 1\n"
