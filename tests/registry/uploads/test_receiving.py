"""Adapters sent through a form or as a zip: read as the folder that they were, refused with field and way out."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from safetensors.numpy import load_file, save_file

from adapterhub.accounts.models import User
from registry.adapter_files.safetensors_header import Unreadable
from registry.models import Adapter, AdapterVersion
from registry.uploads import archive
from tests.builders import write_adapter
from tests.builders.rest import client as api_client
from tests.builders.rest import problem

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLACE = "/api/v1/adapters/dora/versions/"
PAGE = "/adapters/dora/upload/"


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as packed:
        for name, raw in files.items():
            packed.writestr(name, raw)
    return stream.getvalue()


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{name}": (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def send(token: str, raw: bytes) -> Any:
    return api_client(token).post(PLACE, {"archive": SimpleUploadedFile("a.zip", raw)}, format="multipart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "sent")


@pytest.fixture
def person(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_with_a_folder_and_macs_files_is_read(ci: str, adapter: Adapter, folder: Path, method: int) -> None:
    aside = {"__MACOSX/out/._adapter_config.json": b"\0\5\x16\7", "out/.DS_Store": b"x", "out/README.md": b"# model"}
    answer = send(ci, zipped(files_of(folder, "out/") | aside, method))
    assert answer.status_code == 201, answer.json()
    lines = AdapterVersion.objects.get().lineage["conversions"]
    assert lines == ["The zip was unpacked.", "Taken from out/.", "Left out: README.md."]


def test_the_products_own_zip_comes_back(ci: str, adapter: Adapter, version: AdapterVersion) -> None:
    own = b"".join(api_client(ci).get(f"{PLACE}{version.number}/download/").streaming_content)  # type: ignore[attr-defined]
    problem(send(ci, own), 409, "version_exists")


def test_shards_are_joined_as_they_were_one_file(ci: str, adapter: Adapter, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    for part, some in ((1, names[: len(names) // 2]), (2, names[len(names) // 2 :])):
        save_file({name: tensors[name] for name in some}, folder / f"adapter_model-{part:05d}-of-00002.safetensors")
    (folder / WEIGHTS).unlink()
    answer = send(ci, zipped({path.name: path.read_bytes() for path in folder.iterdir()}))
    assert answer.status_code == 201, answer.json()
    stored = AdapterVersion.objects.get().stored(folder.with_name("stored"))
    joined = load_file(stored / WEIGHTS)
    assert {name: value.tolist() for name, value in joined.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }


def encrypted(raw: bytes) -> bytes:
    """Set the mark of a password in each record of the zip."""
    changed = bytearray(raw)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := raw.find(mark, place + 1)) >= 0:
            changed[place + offset] |= 1
    return bytes(changed)


def crowded(raw: bytes) -> bytes:
    """Announce a list of files that is longer than what is read."""
    place = raw.rfind(b"PK\x05\x06")
    return raw[: place + 12] + struct.pack("<I", 2**21) + raw[place + 16 :]


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a path that leads out": (lambda folder: zipped(files_of(folder, "../../")), ""),
    "a password": (lambda folder: encrypted(zipped(files_of(folder))), "encrypted_zip"),
    "an unusual method": (lambda folder: zipped(files_of(folder), zipfile.ZIP_LZMA), "zip_method"),
    "a changed byte": (lambda folder: flipped_inside(zipped(files_of(folder), zipfile.ZIP_STORED)), "bad_zip"),
    "a cut zip": (lambda folder: zipped(files_of(folder))[:-30], "bad_zip"),
    "thousands of files": (lambda folder: crowded(zipped(files_of(folder))), "large_zip"),
    "PyTorch's pickle": (lambda folder: zipped({"adapter_model/data.pkl": b"\x80\2."}), "pickle"),
    "no zip": (lambda folder: b"GGUF" * 9, "no_adapter"),
    "a huge configuration": (lambda folder: zipped(files_of(folder) | {CONFIG: b" " * 2**21}), "config_too_large"),
    "an empty zip": (lambda folder: zipped({}), "no_files"),
}


def flipped_inside(raw: bytes) -> bytes:
    place = raw.find(b"peft_type")
    return raw[:place] + b"PEFT" + raw[place + 4 :]


@pytest.mark.threat("E3")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_zip_is_refused(ci: str, adapter: Adapter, folder: Path, kind: str) -> None:
    make, code = HOSTILE[kind]
    answer = send(ci, make(folder))
    if not code:
        assert answer.status_code == 201  # the name never becomes a path
        return
    body = problem(answer, 422, "bad_adapter")
    assert [(error["field"], error["code"]) for error in body["errors"]] == [("files", code)]
    assert not AdapterVersion.objects.exists()


@pytest.mark.threat("E3")
def test_a_zip_that_unpacks_to_more_than_an_upload_may_have_is_refused(
    ci: str, adapter: Adapter, folder: Path, settings: Any
) -> None:
    settings.UPLOAD_BYTES = 2**20
    body = problem(send(ci, zipped(files_of(folder) | {WEIGHTS: bytes(2**20)})), 422, "bad_adapter")
    assert body["errors"][0]["code"] == "too_large"


def test_a_long_list_of_files_is_refused_before_it_is_read(folder: Path) -> None:
    raw = zipped({f"{number:060d}": b"" for number in range(20_000)})
    with pytest.raises(Unreadable) as refusal:
        archive.unpack(io.BytesIO(raw), folder, 2**30)
    assert refusal.value.finding.code == "large_zip"


def listing(files: dict[str, bytes]) -> str:
    return json.dumps([[name, len(raw)] for name, raw in files.items()])


def test_a_chosen_folder_is_checked_by_its_heads_alone(person: Client, adapter: Adapter, folder: Path) -> None:
    files = files_of(folder, "run/checkpoint-20/") | {"run/trainer_state.json": b"{}"}
    heads = [
        SimpleUploadedFile("0", (folder / CONFIG).read_bytes()),
        SimpleUploadedFile("1", (folder / WEIGHTS).read_bytes()[: 2**13]),
    ]
    answer = person.post(f"{PAGE}check/", {"listing": listing(files), "heads": heads})
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "It can be published" in page
    assert "Taken from run/checkpoint-20/." in page
    assert "data-accepted" in page
    assert not AdapterVersion.objects.exists()


def test_a_refused_folder_shows_every_fault_with_its_field_and_the_way_out(
    person: Client, adapter: Adapter, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "bad", use_dora=True, base_model_name_or_path="acme/other")

    def form(**fields: str) -> dict[str, Any]:
        heads = [SimpleUploadedFile(str(place), raw) for place, raw in enumerate(files_of(folder).values())]
        return {"listing": listing(files_of(folder)), "heads": heads, **fields}

    page = person.post(f"{PAGE}check/", form()).content.decode()
    assert "It is refused" in page
    assert "data-accepted" not in page
    for part in ("adapter_config.json.use_dora", "merge_and_unload", "base_model_name_or_path", "acme/other"):
        assert part in page
    sent = {"files": [SimpleUploadedFile(name, raw) for name, raw in files_of(folder).items()]}
    answer = person.post(PAGE, sent)
    assert (answer.status_code, "adapter_config.json.use_dora" in answer.content.decode()) == (422, True)
    assert not AdapterVersion.objects.exists()
    confirmed = person.post(f"{PAGE}check/", form(confirm_base="The same bytes.")).content.decode()
    assert "A person confirmed that it fits: The same bytes." in confirmed


def test_what_is_no_listing_is_refused(person: Client, adapter: Adapter) -> None:
    for text in ("{", '{"a": 1}', '[["a"]]', '[["a", -1]]', "[[1, 2]]", json.dumps([["a", 1]] * 5001)):
        answer = person.post(
            f"{PAGE}check/", {"listing": text}, headers={"referer": "http://testserver/adapters/dora/"}
        )
        assert answer.status_code == 302, text


def test_what_is_kept_is_not_folded(person: Client, adapter: Adapter) -> None:
    form = {"listing": "[]", "keep": "on", "fold": "on"}
    answer = person.post(f"{PAGE}check/", form, follow=True, headers={"referer": "http://testserver/adapters/dora/"})
    assert "choose fold or keep" in answer.content.decode()


def test_a_form_without_script_publishes_two_files(person: Client, adapter: Adapter, folder: Path) -> None:
    sent = [SimpleUploadedFile(name, raw) for name, raw in files_of(folder).items()]
    answer = person.post(PAGE, {"files": sent})
    version = AdapterVersion.objects.get()
    assert answer["Location"] == f"/adapters/eu.dora/v{version.number}/"
    assert (version.status, version.lineage) == ("checking", {})


def test_a_script_sends_the_chosen_files_and_gets_the_address(person: Client, adapter: Adapter, folder: Path) -> None:
    names = [*files_of(folder, "out/"), "out/README.md"]
    form = {
        "files": [SimpleUploadedFile(name, raw) for name, raw in files_of(folder).items()],
        "listing": json.dumps([[name, 5] for name in names]),
    }
    answer = person.post(PAGE, form, headers={"hx-request": "true"})
    assert (answer.status_code, answer["HX-Redirect"]) == (204, "/adapters/eu.dora/v1/")
    assert AdapterVersion.objects.get().lineage["conversions"] == ["Taken from out/.", "Left out: README.md."]


def test_a_file_that_was_named_and_not_sent_is_named(person: Client, adapter: Adapter, folder: Path) -> None:
    form = {
        "files": [SimpleUploadedFile(CONFIG, (folder / CONFIG).read_bytes())],
        "listing": listing(files_of(folder)),
    }
    answer = person.post(PAGE, form, follow=True, headers={"referer": "http://testserver/adapters/dora/"})
    assert f"{WEIGHTS} was named and not sent" in answer.content.decode()


def test_who_may_not_publish_sees_no_form(client: Client, bob: User, adapter: Adapter, folder: Path) -> None:
    client.force_login(bob)
    assert "Upload a version" not in client.get("/adapters/dora/").content.decode()
    sent = [SimpleUploadedFile(name, raw) for name, raw in files_of(folder).items()]
    assert client.post(PAGE, {"files": sent}).status_code == 403
    assert not AdapterVersion.objects.exists()
