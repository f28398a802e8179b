"""The address of a source of replicas is read strictly."""

from __future__ import annotations

import pytest

from registry.replica_sources.address import Kind, Source, parse


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("dns://VLLM.example.org:8000", Source(Kind.DNS, "vllm.example.org", "8000")),
        ("srv://_http._tcp.vllm.example.org", Source(Kind.SRV, "_http._tcp.vllm.example.org")),
        ("kubernetes://ml/app=vllm", Source(Kind.KUBERNETES, "ml", "", "app=vllm")),
        (
            "kubernetes://ml/adapterhub.io/fleet=llama,tier=gpu?port=http",
            Source(Kind.KUBERNETES, "ml", "http", "adapterhub.io/fleet=llama,tier=gpu"),
        ),
    ],
)
def test_each_form_is_read(text: str, source: Source) -> None:
    assert parse(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://vllm:8000", "names no source"),
        ("vllm:8000", "names no source"),
        ("dns://vllm", "host:port"),
        ("dns://vllm:0", "no port from 1 to 65535"),
        ("dns://vllm:80/path", "no port"),
        ("dns://a b:80", "is not host:port"),
        ("srv://", "is not a name"),
        ("kubernetes://ML/app=vllm", "the namespace first"),
        ("kubernetes://ml", "label=value"),
        ("kubernetes://ml/app=vllm&watch=1", "label=value"),
        ("kubernetes://ml/app=vllm?limit=1", "no port of a Service"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)
