"""`adapterhub cluster` and `adapterhub replica`, and the cluster in a declared file, against a live web process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.accounts.models import ApiToken, Project
from adapterhub.audit.models import AuditEvent
from registry.models import BaseModel, Cluster, Replica
from tests.builders import rows, write_jsonl
from tests.cli.command import Command

pytestmark = pytest.mark.slow


def done(command: Command, *words: str) -> str:
    ended = command(*words)
    assert ended.returncode == 0, ended.stderr
    return str(ended.stdout)


def changes(command: Command, folder: Path, **cluster: Any) -> list[str]:
    """Return the changes that `adapterhub plan` names for the cluster of the file."""
    declared = {"adapter": {"slug": "dora"}, "base": "tiny", "data": "rows.jsonl", "cluster": cluster}
    (folder / "adapterhub.yaml").write_text(yaml.safe_dump(declared))
    write_jsonl(folder / "rows.jsonl", rows())
    planned = json.loads(done(command, "plan", "--json"))["changes"]
    return [f"{one['action']} {one['why']}" for one in planned if one["kind"] == "cluster"]


def test_a_cluster_and_its_replicas_come_and_go(command: Command, base_model: BaseModel, tmp_path: Path) -> None:
    key = tmp_path / "key.txt"
    key.write_text("sk-1\n")
    limits = ("--max-loras", "4", "--max-lora-rank", "16")
    done(command, "cluster", "create", "gpu", "tiny", *limits, "--engine-key-file", str(key))
    done(command, "replica", "add", "gpu", "HTTP://127.0.0.1:1/")
    cluster, replica = Cluster.objects.get(), Replica.objects.get()
    assert (cluster.max_loras, cluster.max_lora_rank) == (4, 16)
    assert (cluster.engine_key, replica.url) == ("sk-1", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 away" in done(command, "cluster", "state", "gpu")
    done(command, "replica", "move", "HTTP://127.0.0.1:1", "http://127.0.0.1:2", "--reason", "renamed")
    done(command, "replica", "drain", "http://127.0.0.1:2", "--reason", "maintenance")
    assert "drained" in done(command, "cluster", "state", "gpu")
    done(command, "replica", "resume", str(replica.pk), "--reason", "over")
    done(command, "cluster", "change", "gpu", "--max-loras", "6", "--routing", "prefix_affinity", "--reason", "x")
    cluster.refresh_from_db()
    assert (cluster.max_loras, cluster.routing) == (6, "prefix_affinity")
    refused = command("cluster", "change", "gpu", "--discovery", "vllm:8000", "--reason", "x")
    assert (refused.returncode != 0, "names no source of replicas" in refused.stderr) == (True, True)
    done(command, "cluster", "change", "gpu", "--discovery", "dns://vllm.test:8000", "--reason", "x")
    cluster.refresh_from_db()
    assert cluster.discovery == "dns://vllm.test:8000"
    refused = command("cluster", "delete", "gpu", "--reason", "unused")
    assert (refused.returncode != 0, "Delete them first" in refused.stderr) == (True, True)
    done(command, "replica", "delete", "http://127.0.0.1:2", "--reason", "gone")
    unknown = command("replica", "delete", "http://127.0.0.1:2", "--reason", "gone")
    assert (unknown.returncode, "There is no replica" in unknown.stderr) == (2, True)
    done(command, "cluster", "delete", "gpu", "--reason", "unused")
    assert not Cluster.objects.exists()
    tags = AuditEvent.objects.filter(tag__regex="^(cluster|replica):").order_by("pk").values_list("tag", flat=True)
    assert list(tags) == [
        "cluster:created",
        "replica:added",
        "replica:changed",
        "replica:drained",
        "replica:resumed",
        "cluster:changed",
        "cluster:changed",
        "replica:deleted",
        "cluster:deleted",
    ]


def test_a_tokens_limits_are_changed(command: Command, ci: str) -> None:
    fields: dict[str, Any] = {"project": Project.objects.get(), "name": "app", "scopes": ["infer"]}
    token = ApiToken.issue(**fields)[0]
    changed = done(command, "token", "limit", token.pk, "--requests-per-s", "2.5", "--reason", "busy")
    assert "app: 2.5 requests a second" in changed
    done(command, "token", "limit", token.pk, "--requests-per-s", "0", "--tokens-per-min", "600", "--reason", "x")
    token.refresh_from_db()
    assert (token.requests_per_s, token.tokens_per_min) == (None, 600)
    assert command("token", "limit", token.pk, "--reason", "x").returncode == 2


def test_a_variant_is_declared_and_revoked(command: Command, base_model: BaseModel) -> None:
    facts = {"tokenizer_digest": base_model.tokenizer_digest, "template_digest": base_model.template_digest}
    shape = {"status": "ready", "digest": "8" * 64, "config": base_model.config}
    BaseModel.objects.create(slug="tiny-int8", source="tiny-int8", **facts, **shape)
    declared = done(command, "base-model", "variant", "tiny-int8", "--of", "tiny", "--reason", "8 bits")
    assert declared == "tiny-int8: a variant of tiny, not measured\n"
    assert done(command, "base-model", "variant", "tiny-int8", "--reason", "undone") == "tiny-int8: no variant\n"
    refused = command("base-model", "variant", "tiny", "--of", "tiny", "--reason", "x")
    assert "are the same files" in refused.stderr


def test_a_declared_cluster_says_what_differs_whatever_the_spelling(
    command: Command, cluster: Cluster, alice: Any, tmp_path: Path
) -> None:
    limits = {"max_lora_rank": cluster.max_lora_rank, "max_loras": cluster.max_loras}
    for port in (1, 80):
        cluster.add_replica(url=f"http://127.0.0.1:{port}", by=alice.as_actor())
    named = ["HTTP://127.0.0.1:1/", "http://127.0.0.1:80"]
    assert changes(command, tmp_path, slug="new", **limits) == ["create a cluster of tiny"]
    assert changes(command, tmp_path, slug="cpu", replicas=named, **limits) == []
    # Who was found is the source's, whatever the file names.
    cluster.add_replica(url="http://127.0.0.1:2", by=alice.as_actor(), is_discovered=True)
    assert changes(command, tmp_path, slug="cpu", replicas=named, **limits) == []
    sourced = changes(command, tmp_path, slug="cpu", discovery="dns://vllm.test:8000", **limits)
    assert sourced == ["change discovery"]
    other = {**limits, "max_loras": 5, "replicas": ["http://127.0.0.1:1", "http://127.0.0.1:3"]}
    (difference,) = changes(command, tmp_path, slug="cpu", **other)
    assert difference == "change max_loras, + http://127.0.0.1:3, - http://127.0.0.1"


def test_a_projects_limits_are_changed_and_declared(command: Command, base_model: BaseModel, tmp_path: Path) -> None:
    project = Project.objects.get()
    changed = done(command, "project", "limit", project.slug, "--requests-per-s", "2.5", "--reason", "busy")
    assert f"{project.slug}: 2.5 requests a second" in changed
    assert command("project", "limit", project.slug, "--reason", "x").returncode == 2
    declared = {"adapter": {"slug": "dora"}, "base": "tiny", "data": "rows.jsonl"}
    limits = {"requests_per_s": None, "tokens_per_min": 600, "reason": "x"}
    write_jsonl(tmp_path / "rows.jsonl", rows())
    for wanted, kinds in ((limits, ["limits"]), ({"requests_per_s": 2.5}, [])):
        (tmp_path / "adapterhub.yaml").write_text(yaml.safe_dump({**declared, "limits": wanted}))
        planned = json.loads(done(command, "plan", "--json"))["changes"]
        assert [one["kind"] for one in planned if one["kind"] == "limits"] == kinds
    (tmp_path / "adapterhub.yaml").write_text(yaml.safe_dump({**declared, "limits": {"tokens_per_min": 0}}))
    assert "limits.tokens_per_min" in command("plan").stderr
