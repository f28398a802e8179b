"""A person brings an adapter: chosen, dropped or by keyboard alone; checked, published, or refused with the way out."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Sum

from registry.models import Adapter, AdapterVersion, StagedFile
from registry.pages.uploads import parts
from registry.uploads import verification
from tests.builders import write_adapter
from tests.e2e.axe import violations

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# A drop of a folder as a browser makes it: entries that are read one by one.
DROP = """([card, files]) => {
  const fileOf = ([name, raw]) => new File([Uint8Array.from(atob(raw), (letter) => letter.charCodeAt(0))], name);
  const entry = (pair) => ({name: pair[0], isFile: true, file: (done) => done(fileOf(pair))});
  let left = [files.map(entry)];
  const folder = {name: "out", isFile: false, createReader: () => ({readEntries: (done) => done(left.shift() || [])})};
  const event = new Event("drop", {bubbles: true, cancelable: true});
  event.dataTransfer = {items: [{webkitGetAsEntry: () => folder}]};
  document.querySelector(card).dispatchEvent(event);
}"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_adapter(tmp_path / "out", base_model_name_or_path="unsloth/tiny-bnb-4bit", new_option=None)
    (made / "README.md").write_text("# An adapter")
    return made


@pytest.mark.slow
def test_a_folder_is_checked_and_published_with_its_report(
    page: Any, adapter: Adapter, folder: Path, axe: str, tmp_path: Path
) -> None:
    page.goto("/adapters/eu.dora/upload/")
    assert page.get_by_role("button", name="Publish as the next version").is_disabled()
    # By keyboard: the fields come one after another, and the button is reached once the check accepts.
    page.get_by_label("Or its folder").focus()
    page.get_by_label("Or its folder").set_input_files(folder)
    page.get_by_role("heading", name="It can be published").wait_for()
    assert page.evaluate("document.activeElement.id") == "upload-answer"
    page.get_by_text("a copy of 'tiny' with fewer bits").wait_for()
    page.get_by_text("Left out: README.md.").wait_for()
    assert violations(page, axe) == []
    page.screenshot(path=tmp_path / "upload-accepted.png", full_page=True)
    page.get_by_role("button", name="Publish as the next version").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/adapters/eu.dora/v1/")
    page.get_by_text("dora v1 is stored").wait_for()
    version = AdapterVersion.objects.get()
    assert version.lineage["conversions"] == ["Taken from out/.", "Left out: README.md."]
    verification.check(version)
    # The page follows the check by itself.
    page.locator("h1 .badge", has_text="ready").wait_for()
    page.get_by_text("Taken from out/.").wait_for()
    page.get_by_text("were left out: new_option").wait_for()
    assert violations(page, axe) == []
    page.screenshot(path=tmp_path / "report.png", full_page=True)


@pytest.mark.slow
def test_a_refusal_names_the_field_and_the_fix_and_what_is_mended_goes_through(
    page: Any, adapter: Adapter, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "out", base_model_name_or_path="acme/our-copy", use_dora=True)
    files = [[name, base64.b64encode((folder / name).read_bytes()).decode()] for name in (CONFIG, WEIGHTS)]
    page.goto("/adapters/eu.dora/upload/")
    page.evaluate(DROP, ["#upload", files])
    page.get_by_role("heading", name="It is refused").wait_for()
    page.get_by_text("adapter_config.json.use_dora").wait_for()
    page.get_by_text("register the result as a base model").first.wait_for()
    assert page.get_by_role("button", name="Publish as the next version").is_disabled()
    page.screenshot(path=tmp_path / "upload-refused.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#upload").evaluate("card => card.scrollWidth <= card.clientWidth")
    page.screenshot(path=tmp_path / "upload-refused-phone.png", full_page=True)
    write_adapter(folder, base_model_name_or_path="acme/our-copy")
    page.get_by_label("adapter_config.json and adapter_model").set_input_files([folder / CONFIG, folder / WEIGHTS])
    page.get_by_text("acme/our-copy").wait_for()
    page.locator("#upload summary").press("Enter")
    page.get_by_label("Why it fits").fill("The same bytes, on our own hub.")
    page.get_by_label("Why it fits").blur()
    page.get_by_role("heading", name="It can be published").wait_for()
    page.get_by_text("A person confirmed that it fits").wait_for()
    assert not AdapterVersion.objects.exists()


@pytest.mark.slow
def test_a_zip_is_unpacked_and_a_refused_one_says_why(
    page: Any, adapter: Adapter, folder: Path, tmp_path: Path
) -> None:
    def packed(names: list[str]) -> dict[str, Any]:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.write(folder / name, f"out/{name}")
            archive.writestr("__MACOSX/out/._README.md", b"\0")
        return {"name": "out.zip", "mimeType": "application/zip", "buffer": stream.getvalue()}

    page.goto("/adapters/eu.dora/upload/")
    field = page.get_by_label("adapter_config.json and adapter_model")
    button = page.get_by_role("button", name="Publish as the next version")
    field.set_input_files([packed([WEIGHTS])])
    page.get_by_text("is unpacked and checked when it has arrived").wait_for()
    button.click()
    page.get_by_text(f"but no {CONFIG}").wait_for()
    field.set_input_files([packed([CONFIG, WEIGHTS])])
    page.get_by_text("is unpacked and checked when it has arrived").wait_for()
    button.click()
    page.wait_for_url("**/adapters/eu.dora/v1/")
    assert AdapterVersion.objects.get().lineage["conversions"][0] == "The zip was unpacked."


@pytest.mark.slow
def test_an_interrupted_upload_goes_on_by_itself_and_after_the_page_was_opened_again(
    page: Any, adapter: Adapter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 1000)
    offsets: list[int] = []
    broken = {"after": 2}

    def pass_on(route: Any) -> None:
        body = (route.request.post_data_buffer or b"").decode(errors="replace")
        offset = re.search(r'name="offset"\r\n\r\n(\d+)', body)
        if offset and len(offsets) >= broken["after"]:
            route.abort()
            return
        offsets.extend([int(offset[1])] if offset else [])
        route.continue_()

    def choose() -> None:
        page.goto("/adapters/eu.dora/upload/")
        page.get_by_label("Or its folder").set_input_files(folder)
        page.get_by_role("heading", name="It can be published").wait_for()
        page.get_by_role("button", name="Publish as the next version").click()

    page.route("**/upload/part/", pass_on)
    choose()
    page.get_by_text("It goes on by itself").wait_for()
    page.screenshot(path=tmp_path / "upload-interrupted.png", full_page=True)
    arrived = StagedFile.objects.aggregate(Sum("size_bytes"))["size_bytes__sum"]
    assert (len(offsets), AdapterVersion.objects.count()) == (2, 0)
    # The page is closed in the middle; the same folder goes on behind what has arrived.
    choose()
    page.get_by_text("It goes on by itself").wait_for()
    assert StagedFile.objects.aggregate(Sum("size_bytes"))["size_bytes__sum"] == arrived
    # The connection is back: the open page goes on without a click.
    broken["after"] = 10**6
    page.wait_for_url("**/adapters/eu.dora/v1/")
    assert len(offsets) == len({*offsets}) or sorted(offsets).count(0) <= 2, offsets
    stored = AdapterVersion.objects.get().stored(tmp_path / "stored")
    assert (stored / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert not StagedFile.objects.exists()
