"""Manifests of OCI registries: read as ModelPacks with an adapter, or refused with what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from adapterhub.cli.oci.modelpack import (
    ARTIFACT,
    CONFIG,
    MANIFEST,
    NoModelPack,
    read_configuration,
    read_manifest,
    title_of,
)

Json = dict[str, Any]
WEIGHT, WEIGHT_CONFIG = "application/vnd.cncf.model.weight.v1", "application/vnd.cncf.model.weight.config.v1"


def layer(path: str, kind: str, size: Any = 9, digest: str = f"sha256:{'a' * 64}") -> Json:
    annotations = {"org.cncf.model.filepath": path}
    return {"mediaType": kind, "digest": digest, "size": size, "annotations": annotations}


def whole() -> Json:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, "digest": f"sha256:{'b' * 64}", "size": 9},
        "layers": [
            layer("adapter_config.json", f"{WEIGHT_CONFIG}.raw"),
            layer("out/adapter_model.safetensors", f"{WEIGHT}.raw"),
            layer("README.md", "application/vnd.cncf.model.doc.v1.raw"),
            layer("train.py", "application/vnd.cncf.model.code.v1.tar"),
        ],
    }


def test_the_adapters_files_are_taken_and_the_rest_is_left() -> None:
    config, blobs, count = read_manifest(json.dumps(whole()).encode())
    assert (config["mediaType"], count) == (CONFIG, 4)
    assert [blob.path for blob in blobs] == ["adapter_config.json", "out/adapter_model.safetensors"]


@pytest.mark.parametrize("kind", [f"{WEIGHT}.tar", f"{WEIGHT}.tar+gzip", f"{WEIGHT_CONFIG}.tar"])
def test_a_layer_may_be_a_tar(kind: str) -> None:
    _, blobs, _ = read_manifest(json.dumps(whole() | {"layers": [layer("", kind)]}).encode())
    assert [(blob.is_archive, blob.path) for blob in blobs] == [(True, "a" * 64)]


WRONG: dict[str, tuple[Callable[[Json], object], str]] = {
    "an image": (
        lambda it: it.update(artifactType=None, config={"mediaType": "application/vnd.oci.image"}),
        "manifest",
    ),
    "an index": (lambda it: it.update(artifactType=None, config=None, mediaType="x.index"), "x.index"),
    "no layers": (lambda it: it.update(layers=[]), "1 to"),
    "too many layers": (lambda it: it.update(layers=it["layers"] * 300), "1 to"),
    "another digest": (lambda it: it["layers"][0].update(digest="sha512:aa"), "digest"),
    "a size as text": (lambda it: it["layers"][0].update(size="9"), "size"),
    "a negative size": (lambda it: it["layers"][0].update(size=-1), "size"),
    "a true size": (lambda it: it["layers"][0].update(size=True), "size"),
    "a huge file": (lambda it: it["layers"][0].update(size=2**60), "GB"),
    "a huge configuration": (lambda it: it["config"].update(size=2**30), "1 MB"),
    "annotations that are a list": (lambda it: it["layers"][0].update(annotations=["a"]), "layers"),
    "a layer that is a text": (lambda it: it["layers"].append("x"), "layers"),
    "zstd": (lambda it: it["layers"][1].update(mediaType=f"{WEIGHT}.tar+zstd"), r"tar\+gzip"),
    "a path that leads out": (lambda it: it["layers"].append(layer("../x.safetensors", f"{WEIGHT}.raw")), "folder"),
    "a path from the root": (lambda it: it["layers"].append(layer("/etc/x.safetensors", f"{WEIGHT}.raw")), "folder"),
    "a backslash": (lambda it: it["layers"].append(layer("..\\x.safetensors", f"{WEIGHT}.raw")), "folder"),
    "no path": (lambda it: it["layers"].append(layer("", f"{WEIGHT}.raw")), "folder"),
    "another model": (lambda it: it.update(layers=[layer("model.gguf", f"{WEIGHT}.raw")]), "adapter's files"),
    "documents alone": (lambda it: it.update(layers=it["layers"][2:]), "adapter's files"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_adapter_is_refused_by_name(name: str) -> None:
    manifest = whole()
    change, words = WRONG[name]
    change(manifest)
    with pytest.raises(NoModelPack, match=words):
        read_manifest(json.dumps(manifest).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(NoModelPack, match="JSON"):
        read_manifest(text)
    with pytest.raises(NoModelPack, match="JSON"):
        read_configuration(text, 1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"descriptor": {}, "config": {}, "modelfs": []},
        {"descriptor": {}, "config": {}, "modelfs": {"type": "layers", "diffIds": ["a"]}},
        {"descriptor": {}, "config": {}, "modelfs": {"type": "other", "diffIds": ["a", "b"]}},
    ],
)
def test_a_configuration_names_every_layer(config: Json) -> None:
    with pytest.raises(NoModelPack, match="ModelPack"):
        read_configuration(json.dumps(config).encode(), 2)


def test_a_title_is_read_as_far_as_it_is_there() -> None:
    assert title_of({"descriptor": {"name": "dora", "version": "v3"}}) == "dora v3"
    assert title_of({"descriptor": {}}) == "a model without a name"
