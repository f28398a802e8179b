"""Adapters of other tools become PEFT's two files on the sender's machine, and compute what they computed before."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.cli.conversion.raw_tensors import EIGHT_BITS
from adapterhub.cli.conversion.sources import prepared
from adapterhub.cli.exit_codes import Ended
from tests.cases import foreign_headers, foreign_kinds
from tests.cases.make_cases import make
from tests.tiny_model import SMOLLM2, save_base_model

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
# Case -> a word of its note, and the case that PEFT computes the same for.
CONVERTED: dict[str, tuple[str, str]] = {
    "keys-default": ("renamed", "plain"),
    "keys-no-prefix": ("renamed", "plain"),
    "keys-language-model": ("renamed", "plain"),
    "keys-torchtune": ("torchtune", "plain"),
    "bin-pickle": ("weights_only", "plain"),
    "sharded": ("2 shards", "plain"),
    "run-folder": ("checkpoint-20", "plain"),
    "f64": ("F64", "plain"),
    "fp8": ("F8_E4M3", "fp8"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base_model(tmp_path_factory.mktemp("models") / "SmolLM2-135M-Instruct", 4, **SMOLLM2)


@pytest.fixture(scope="module")
def case(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a case, made once."""
    root = tmp_path_factory.mktemp("cases")
    return lambda name: root / name if (root / name).exists() else make(name, base, root / name)


def logits(base: Path, adapter: Path) -> torch.Tensor:
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.inference_mode():
        return torch.as_tensor(PeftModel.from_pretrained(whole, str(adapter)).eval()(input_ids=IDS).logits)


def tensors_of(folder: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("name", CONVERTED)
def test_it_computes_what_it_computed(name: str, case: Callable[[str], Path], base: Path) -> None:
    note, same_as = CONVERTED[name]
    expected = logits(base, case(same_as))
    with prepared(case(name)) as made:
        assert note in " ".join(made.notes)
        assert len(made.source_sha256) == 64
        assert torch.equal(logits(base, made.folder), expected)


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_down_and_up_are_a_and_b(kind: str, tmp_path: Path) -> None:
    with prepared(foreign_kinds.REFUSED[kind].make(tmp_path / "sent")) as made:
        config = json.loads((made.folder / "adapter_config.json").read_bytes())
        tensors = load_file(made.folder / "adapter_model.safetensors")
    for module, (a, b) in foreign_kinds.factors().items():
        assert torch.equal(tensors[f"base_model.model.{module}.lora_A.weight"], torch.from_numpy(a))
        assert torch.equal(tensors[f"base_model.model.{module}.lora_B.weight"], torch.from_numpy(b))
    alpha = foreign_kinds.RANK * (foreign_kinds.SCALE if kind == "kohya" else 1)
    assert (config["r"], config["lora_alpha"], config["alpha_pattern"]) == (foreign_kinds.RANK, alpha, {})


def test_shards_without_an_index_in_a_zip_of_a_mac(tmp_path: Path) -> None:
    folder = foreign_kinds.write(tmp_path / "sent")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    for part, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:]), 1):
        save_file({name: tensors[name] for name in names}, folder / f"adapter_model-{part:05d}-of-00002.safetensors")
    with zipfile.ZipFile(tmp_path / "sent.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"outer/sent/{path.name}")
            archive.writestr(f"__MACOSX/outer/sent/._{path.name}", b"\0\5\x16\7")
    with prepared(tmp_path / "sent.zip") as made:
        assert "2 shards were joined." in made.notes
        assert tensors_of(made.folder) == {name: tensor.tolist() for name, tensor in tensors.items()}
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Ended, match="1 of 00002 shards"), prepared(folder):
        pass


def test_mlx_is_transposed_and_scaled(case: Callable[[str], Path]) -> None:
    source = load_file(case("mlx") / "adapters.safetensors")
    with prepared(case("mlx")) as made:
        config = json.loads((made.folder / "adapter_config.json").read_bytes())
        tensors = load_file(made.folder / "adapter_model.safetensors")
    for name, a in source.items():
        if name.endswith(".lora_a"):
            b = source[name.replace(".lora_a", ".lora_b")]
            module = f"base_model.model.{name.removesuffix('.lora_a')}"
            update = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
            scale = config["lora_alpha"] / config["r"]
            torch.testing.assert_close(scale * update, 2.0 * (a @ b).T, rtol=1e-5, atol=1e-7)
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def mlx(folder: Path, source: Path, parameters: dict[str, Any], **more: torch.Tensor) -> Path:
    """MLX's files with other parameters and, in each module, further tensors."""
    tensors = load_file(source / "adapters.safetensors")
    modules = {name.rpartition(".")[0] for name in tensors}
    extra = {f"{module}.{name}": value.clone() for module in modules for name, value in more.items()}
    folder.mkdir()
    save_file(tensors | extra, folder / "adapters.safetensors")
    config = {"fine_tune_type": "dora", "model": "acme/tiny", "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_mlx_s_dora_is_pefts(case: Callable[[str], Path], tmp_path: Path) -> None:
    sent = mlx(tmp_path / "dora", case("mlx"), {"rank": 4, "scale": 20.0}, m=torch.ones(24))
    with prepared(sent) as made:
        config = json.loads((made.folder / "adapter_config.json").read_bytes())
        tensors = load_file(made.folder / "adapter_model.safetensors")
    assert (config["use_dora"], config["lora_alpha"]) == (True, 80.0)
    assert all(tensor.shape == (24,) for name, tensor in tensors.items() if name.endswith(".lora_magnitude_vector"))
    assert sum(name.endswith(".lora_magnitude_vector") for name in tensors) * 3 == len(tensors)


@pytest.mark.parametrize(
    ("parameters", "more", "sentence"),
    [
        ({"rank": 4, "alpha": 8}, {}, "lora_parameters.scale must be"),
        ({"scale": 20.0}, {}, "lora_parameters.rank must be"),
        ({"rank": "4", "scale": 20.0}, {}, "lora_parameters.rank must be"),
        ({"rank": 4, "scale": 20.0}, {"weight": torch.ones(2, 2)}, "is no matrix of a LoRA"),
    ],
)
def test_what_mlx_does_not_say_is_named(
    parameters: dict[str, Any],
    more: dict[str, torch.Tensor],
    sentence: str,
    case: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(Ended, match=sentence), prepared(mlx(tmp_path / "sent", case("mlx"), parameters, **more)):
        pass


@pytest.mark.parametrize("fault", ["doubled", "missing", "surplus"])
def test_shards_are_what_their_index_says(fault: str, tmp_path: Path) -> None:
    folder = foreign_kinds.write(tmp_path / "sent")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    first, second = sorted(tensors)[:9], sorted(tensors)[9:]
    parts = {"doubled": (first, [*second, first[0]]), "missing": (first, second[1:]), "surplus": (first, second)}[fault]
    index = {}
    for part, names in enumerate(parts, 1):
        file = f"adapter_model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    index |= {second[0]: "adapter_model-00002-of-00002.safetensors"} if fault == "missing" else {}
    if fault == "surplus":
        del index[second[0]]
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sentence = {"doubled": "another shard has", "missing": "is in no shard", "surplus": "is not in the index"}[fault]
    with pytest.raises(Ended, match=sentence), prepared(folder):
        pass


@pytest.mark.parametrize("names", [{"w": 1}, {"w": ["a"]}, ["w"], None])
def test_an_index_that_names_no_files_is_refused(names: object, case: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(case("plain"), tmp_path / "sharded"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model-00001-of-00001.safetensors")
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(Ended, match="cannot be read"), prepared(folder):
        pass


def test_whole_numbers_go_to_the_check_as_they_are(tmp_path: Path) -> None:
    """The server names their type beside every other fault."""
    sent = foreign_kinds.REFUSED["whole numbers"].make(tmp_path / "sent")
    with prepared(sent) as made:
        assert (made.folder, made.notes) == (sent, ())
    odd = foreign_headers.REFUSED["scales of microscaled numbers"].make(tmp_path / "odd")
    with pytest.raises(Ended, match="type F8_E8M0"), prepared(odd):
        pass


def test_what_is_pefts_own_is_sent_as_it_is(case: Callable[[str], Path]) -> None:
    with prepared(case("plain")) as made:
        assert (made.folder, made.notes) == (case("plain"), ())


@pytest.mark.parametrize("pruned", [False, True])
def test_adalora_is_converted_exactly(pruned: bool, case: Callable[[str], Path], base: Path, tmp_path: Path) -> None:
    source, keep = case("type-adalora"), torch.tensor([True, False, True, True, False, True])
    config = json.loads((source / "adapter_config.json").read_bytes())
    tensors = {name: torch.randn(t.shape) * 0.1 for name, t in load_file(source / "adapter_model.safetensors").items()}
    if pruned:
        names = [name.removeprefix("base_model.model.") for name in tensors if name.endswith("lora_E")]
        config["rank_pattern"] = dict.fromkeys(names, keep.tolist())
        tensors = {name: t[:, keep] if name.endswith("lora_B") else t[keep] for name, t in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expected = logits(base, tmp_path)
    with prepared(tmp_path) as made:
        assert json.loads((made.folder / "adapter_config.json").read_bytes())["r"] == (4 if pruned else 6)
        assert (logits(base, made.folder) - expected).norm() / expected.norm() < 1e-6


def test_an_adalora_that_changes_nothing_is_told(case: Callable[[str], Path]) -> None:
    with pytest.raises(Ended, match="changes nothing"), prepared(case("type-adalora")):
        pass


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked(kind: str, case: Callable[[str], Path], tmp_path: Path) -> None:
    archive = tmp_path / f"adapter.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as target:
            for path in case("plain").iterdir():
                target.write(path, f"out/{path.name}")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(case("plain"), "out")
    with prepared(archive) as made:
        assert tensors_of(made.folder) == tensors_of(case("plain"))
        assert "unpacked" in made.notes[0]


@pytest.mark.threat("E1")
def test_an_archive_leads_nowhere_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        target.writestr("../outside", b"x")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        entry = tarfile.TarInfo("/tmp/outside")  # noqa: S108 - the name that must not be used
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    for name in ("a.zip", "b.tar"):
        with pytest.raises(Ended, match="lies outside of its folder"), prepared(tmp_path / name):
            pass
    assert not (tmp_path / "outside").exists()


class Canary:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.threat("E2")
def test_only_tensors_are_unpickled(case: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"x": Canary(tmp_path / "canary")}))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Ended, match="cannot be read"), prepared(tmp_path):
        pass
    assert not (tmp_path / "canary").exists()


def test_torchtunes_own_file_of_queries_is_refused(case: Callable[[str], Path], tmp_path: Path) -> None:
    source = case("keys-torchtune")
    torch.save(load_file(source / "adapter_model.safetensors"), tmp_path / "adapter_model.pt")
    (tmp_path / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    with pytest.raises(Ended, match="another order"), prepared(tmp_path):
        pass


@pytest.mark.parametrize(("dtype", "torchs"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_number_of_eight_bits_is_torchs(dtype: str, torchs: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torchs).float()
    assert torch.equal(torch.nan_to_num(torch.from_numpy(EIGHT_BITS[dtype]), 7e7), torch.nan_to_num(expected, 7e7))


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (b"GGUF\x03", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "page"),
    ],
)
def test_another_file_under_the_weights_name_is_named(first: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(first + b"\0" * 64)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Ended, match=named), prepared(tmp_path):
        pass


def test_a_folder_without_an_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(Ended, match="has no adapter"), prepared(tmp_path):
        pass
