from __future__ import annotations

import pytest

from registry.api.clusters import NewReplicaSerializer


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8100", "http://vllm:8000", "https://vllm-0.vllm.svc.cluster.local:8000/", "http://[::1]:8100"],
)
def test_a_replica_lies_at_a_host_and_a_port(url: str) -> None:
    assert NewReplicaSerializer(data={"cluster": "gpu", "url": url}).is_valid()


@pytest.mark.parametrize(
    "url",
    ["vllm:8000", "ftp://vllm", "http://user:secret@vllm:8000", "http://vllm/admin?x=1", "http://", "file:///etc"],
)
def test_anything_else_is_refused(url: str) -> None:
    refused = NewReplicaSerializer(data={"cluster": "gpu", "url": url})
    assert not refused.is_valid()
    assert list(refused.errors) == ["url"]
