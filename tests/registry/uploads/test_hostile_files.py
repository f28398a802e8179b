"""The threat table on adapters, paths and stores: each hostile file is refused with the field, and nothing is kept."""

from __future__ import annotations

import gc
import io
import json
import pickle
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile

from adapterhub.core.errors import Invalid
from registry.adapter_files.manifest import read_parts
from registry.adapter_files.safetensors_header import Unreadable, read_header
from registry.models import Adapter, AdapterVersion
from tests.builders import LAYERS, SHAPES, module_name, write_adapter
from tests.builders.rest import client, problem

PLACE = "/api/v1/adapters/dora/versions/"
A = f"base_model.model.{module_name(0, 'q_proj')}.lora_A.weight"
B = f"base_model.model.{module_name(0, 'q_proj')}.lora_B.weight"


class Canary:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def upload(token: str, weights: bytes, config: bytes, *, name: str = "adapter_model.safetensors") -> Any:
    files = {"adapter_model": SimpleUploadedFile(name, weights), "adapter_config": SimpleUploadedFile("c", config)}
    return client(token).post(PLACE, files, format="multipart")


@pytest.fixture
def good(tmp_path: Path) -> tuple[bytes, bytes]:
    folder = write_adapter(tmp_path / "good")
    return (folder / "adapter_model.safetensors").read_bytes(), (folder / "adapter_config.json").read_bytes()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """One collection of all that the tests' process holds takes half a second, in whatever thread it falls."""
    gc.disable()
    yield
    gc.enable()


def stored_files() -> set[Path]:
    return {path for path in Path(settings.ARTIFACT_STORE).rglob("*") if path.is_file()}


def archive() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as zip_file:
        zip_file.writestr("../../adapter_model.safetensors", b"x")
    return target.getvalue()


def with_header(header: Any, body: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def tensor(shape: list[Any], start: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


PAIR = {A: tensor([4, 16], 0, 256), B: tensor([16, 4], 256, 512)}
HEADERS = {
    "overlap": with_header(PAIR | {B: tensor([16, 4], 0, 256)}, b"\0" * 512),
    "hole": with_header(PAIR | {B: tensor([16, 4], 260, 516)}, b"\0" * 516),
    "cut body": with_header(PAIR, b"\0" * 500),
    "two keys of one name": with_header(json.dumps(PAIR)[:-1].encode() + b"," + json.dumps(PAIR)[1:].encode(), b"\0"),
    "25,000 tensors": with_header({f"t{n}": tensor([0], 0, 0) for n in range(25_000)}),
    "over 2 MB": with_header(b" " * (2 * 2**20) + json.dumps(PAIR).encode(), b"\0" * 512),
    "a path as a name": with_header({"../../x": tensor([4, 16], 0, 256)}, b"\0" * 256),
    "a shape that overflows": with_header({A: tensor([2**62, 4], 0, 256)}, b"\0" * 256),
    "a shape that takes long to multiply": with_header({A: tensor([10**4000] * 400, 0, 256)}, b"\0" * 256),
    "offsets that are no whole numbers": with_header({A: tensor([4, 16], 0.0, 256.0)}, b"\0" * 256),
    "another type": with_header({A: tensor([4, 16], 0, 512, "F64")}, b"\0" * 512),
    "another shape": with_header(PAIR | {A: tensor([16, 4], 0, 256)}, b"\0" * 512),
    "rank 0": with_header({A: tensor([0, 16], 0, 0), B: tensor([16, 0], 0, 0)}),
    "a zip": archive(),
    "nothing": b"",
    "a lone surrogate": with_header(b'{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "deep": with_header(b"[" * 100_000),
    "a name without end": with_header({".layers.1.attn" * 140_000: tensor([0], 0, 0)}),
    "long names": with_header({f"{'embed_tokens.' * 38}{n}": tensor([0], 0, 0) for n in range(3000)}),
}


@pytest.mark.threat("E3")
@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_weights_file_is_refused(ci: str, adapter: Adapter, good: tuple[bytes, bytes], name: str) -> None:
    before, began = stored_files(), time.process_time()
    body = problem(upload(ci, HEADERS[name], good[1]), 422, "invalid" if name == "nothing" else "bad_adapter")
    assert body["errors"][0]["field"] == ("adapter_model" if name == "nothing" else "adapter_model.safetensors")
    assert (stored_files(), AdapterVersion.objects.exists()) == (before, False)
    assert not list(settings.WORK_DIR.glob("tmp*")), "nothing is left behind"
    assert time.process_time() - began < 5


@pytest.mark.threat("E3")
@pytest.mark.parametrize("name", [name for name in HEADERS if name != "nothing"])
def test_no_header_takes_long(good: tuple[bytes, bytes], name: str, tmp_path: Path, uncollected: None) -> None:
    """The time of this thread in the reader alone: a busy machine does not lengthen it."""
    (tmp_path / "adapter_model.safetensors").write_bytes(HEADERS[name])
    (tmp_path / "adapter_config.json").write_bytes(good[1])
    began = time.thread_time()
    with pytest.raises(Invalid):
        read_parts(tmp_path, {"q_proj": (16, 16)}, 2)
    assert time.thread_time() - began < 0.5


def test_a_crowd_of_tensors_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    (tmp_path / "crowd").write_bytes(HEADERS["25,000 tensors"])
    with pytest.raises(Unreadable, match="more than 20,000 tensors"):
        read_header(tmp_path / "crowd")


@pytest.mark.threat("E2")
def test_a_pickle_is_never_opened(ci: str, adapter: Adapter, good: tuple[bytes, bytes], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    raw = pickle.dumps(Canary(canary)) * 9
    for name in ("adapter_model.bin", "adapter_model.pt", "adapter_model.safetensors"):
        problem(upload(ci, raw, good[1], name=name), 422, "bad_adapter")
        problem(upload(ci, good[0], raw, name=name), 422, "bad_adapter")
    assert not canary.exists()


@pytest.mark.threat("E1")
@pytest.mark.parametrize("name", ["../../x", "..%252fx", "..\\x", "/etc/passwd", "a\0b", "adapter_model.py"])
def test_the_senders_file_name_is_no_path(
    ci: str, adapter: Adapter, good: tuple[bytes, bytes], name: str, tmp_path: Path
) -> None:
    assert upload(ci, *good, name=name).status_code == 201
    version = AdapterVersion.objects.get()
    assert {path.name for path in version.stored(tmp_path / "out").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "megatron": ({"megatron_core": "os"}, "megatron_core"),
    "auto_map": ({"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
    "a regular expression": ({"target_modules": "(.*)*x!"}, "target_modules"),
    "a pattern that runs": ({"rank_pattern": {"(.*)*x!(?=y)": 4}}, "rank_pattern"),
    "names of layers without end": (
        {"layers_to_transform": [0], "layers_pattern": [f"(a|b{n}){{9}}" for n in range(400)]},
        "target_modules",
    ),
    "layers without end": ({"layers_to_transform": [0] * 300_000}, "target_modules"),
    "patterns without end": ({"rank_pattern": {f"(a|b){n}*": 4 for n in range(999)}}, "rank_pattern"),
    "a huge rank": ({"r": 100_000}, "r"),
    "a rank that is not the file's": ({"r": 64}, "r"),
    "an infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha"),
    "a chat template": ({"chat_template": "{{ ''.__class__ }}"}, "chat_template"),
    "a tokenizer": ({"tokenizer_file": "/etc/passwd"}, "tokenizer_file"),
    "another base model": ({"base_model_name_or_path": "/mnt/other"}, "base_model_name_or_path"),
    "a lone surrogate": ({"\ud800": 1}, "\\ud800"),
}


@pytest.mark.threat("E4")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_configuration_is_refused(ci: str, adapter: Adapter, good: tuple[bytes, bytes], name: str) -> None:
    changes, field = CONFIGS[name]
    config = json.dumps(json.loads(good[1]) | changes).encode()
    body = problem(upload(ci, good[0], config), 422, "bad_adapter")
    assert body["errors"][0]["field"] == f"adapter_config.json.{field}"
    assert not AdapterVersion.objects.exists()


@pytest.mark.threat("E5")
@pytest.mark.parametrize(
    "name",
    [
        "a regular expression",
        "a pattern that runs",
        "patterns without end",
        "names of layers without end",
        "layers without end",
    ],
)
def test_no_pattern_is_run(good: tuple[bytes, bytes], name: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(good[1]) | CONFIGS[name][0]))
    began = time.thread_time()
    (tmp_path / "adapter_model.safetensors").write_bytes(good[0])
    with pytest.raises(Invalid):
        read_parts(tmp_path, SHAPES, LAYERS)
    assert time.thread_time() - began < 0.2


@pytest.mark.threat("E1")
@pytest.mark.parametrize("slug", ["..", "..%2f..", "a/b", "a%00b", "dora%2f..", "<svg>"])
def test_a_path_in_an_address_is_no_adapter(ci: str, adapter: Adapter, slug: str) -> None:
    for path in (f"/api/v1/adapters/{slug}/", f"/api/v1/adapters/{slug}/versions/1/download/"):
        assert client(ci).get(path).status_code == 404


@pytest.mark.threat("E1")
@pytest.mark.parametrize("number", ["9" * 10, "9" * 5000, "0", "-1", "1.0", "\u0663"])
def test_a_number_without_end_is_no_version(ci: str, version: AdapterVersion, number: str) -> None:
    for part in ("", "download/", "compressions/"):
        assert client(ci).get(f"/api/v1/adapters/dora/versions/{number}/{part}").status_code == 404
    path = f"/api/v1/adapters/dora/versions/{version.number}/compare/"
    assert client(ci).get(path, {"to": number}).status_code == 422


@pytest.mark.parametrize("slug", ["../x", "a b", "a/b", "a\0", "é", "x" * 60, ""])
def test_a_name_that_could_be_a_path_is_no_adapter(ci: str, base_model: Any, slug: str) -> None:
    body = {"project": "eu", "slug": slug, "base_model": "tiny"}
    code = "null_characters_not_allowed" if "\0" in slug else "invalid"
    assert problem(client(ci).post("/api/v1/adapters/", body), 422, code)["errors"][0]["field"] == "slug"


@pytest.mark.threat("E6")
def test_the_rank_of_a_version_is_checked_against_the_fleet(
    ci: str, adapter: Adapter, cluster: Any, version: AdapterVersion
) -> None:
    type(cluster).objects.filter(pk=cluster.pk).update(max_lora_rank=1)
    body = {"project": "eu", "name": "compliance", "cluster": cluster.slug, "version": version.served_name}
    problem(client(ci).post("/api/v1/aliases/", body), 422, "rank_too_high")
