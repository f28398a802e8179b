"""The adapter among the files that somebody sent: which are taken, and the sentence where none can be."""

from __future__ import annotations

import pytest

from registry.adapter_files.safetensors_header import Unreadable
from registry.adapter_files.selection import select

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PAIR = [CONFIG, WEIGHTS]
SHARDS = [f"adapter_model-{part:05d}-of-00003.safetensors" for part in (1, 2, 3)]


def below(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}" for name in names or PAIR]


# What was sent -> the configuration, the weights, and a part of each note.
TAKEN: dict[str, tuple[list[str], str, list[str], list[str]]] = {
    "two files": (PAIR, CONFIG, [WEIGHTS], []),
    "a folder": (below("out"), f"out/{CONFIG}", [f"out/{WEIGHTS}"], ["Taken from out/."]),
    "hidden files": (
        [*below("out"), "__MACOSX/out/._adapter_config.json", "out/.DS_Store", f"out/._{WEIGHTS}", ".git/HEAD"],
        f"out/{CONFIG}",
        [f"out/{WEIGHTS}"],
        ["Taken from out/."],
    ),
    "other files": (
        [*PAIR, "README.md", "tokenizer.json"],
        CONFIG,
        [WEIGHTS],
        ["Left out: README.md, tokenizer.json."],
    ),
    "from Windows": (
        [f"out\\{CONFIG}", f"out\\{WEIGHTS}"],
        f"out\\{CONFIG}",
        [f"out\\{WEIGHTS}"],
        ["Taken from out/."],
    ),
    "checkpoints": (
        [*below("run/checkpoint-90"), *below("run/checkpoint-100"), "run/checkpoint-100/optimizer.pt"],
        f"run/checkpoint-100/{CONFIG}",
        [f"run/checkpoint-100/{WEIGHTS}"],
        ["Taken from run/checkpoint-100/.", "Left out, other adapters: run/checkpoint-90.", "optimizer.pt"],
    ),
    "the last one above its checkpoints": (
        [*below("run"), *below("run/checkpoint-90")],
        f"run/{CONFIG}",
        [f"run/{WEIGHTS}"],
        ["Taken from run/.", "run/checkpoint-90"],
    ),
    "PEFT's second adapter": (
        [*PAIR, *below("second")],
        CONFIG,
        [WEIGHTS],
        ["Left out, other adapters: second."],
    ),
    "shards": ([CONFIG, *SHARDS, "adapter_model.safetensors.index.json"], CONFIG, SHARDS, ["3 shards", "index.json"]),
    "another name": (
        [CONFIG, "pytorch_lora_weights.safetensors"],
        CONFIG,
        ["pytorch_lora_weights.safetensors"],
        ["pytorch_lora_weights.safetensors was read as adapter_model.safetensors."],
    ),
    "downloaded twice": (
        ["adapter_config (1).json", "adapter_model (1).safetensors"],
        "adapter_config (1).json",
        ["adapter_model (1).safetensors"],
        ["adapter_model (1).safetensors was read", "adapter_config (1).json was read as adapter_config.json."],
    ),
    "beside a pickle of the same": ([*PAIR, "adapter_model.bin"], CONFIG, [WEIGHTS], ["Left out: adapter_model.bin."]),
}
# What was sent -> the fault's code, and a part of its cause or route.
REFUSED: dict[str, tuple[list[str], str, str]] = {
    "nothing": ([], "no_files", "or a zip"),
    "only hidden files": (["__MACOSX/._x", ".DS_Store"], "no_files", "No file"),
    "weights alone": ([WEIGHTS], "no_config", "save_pretrained"),
    "a configuration alone": ([CONFIG], "no_weights", WEIGHTS),
    "something else": (["notes.txt"], "no_adapter", "notes.txt"),
    "a pickle": ([CONFIG, "adapter_model.bin", "training_args.bin"], "pickle", "adapterhub push"),
    "GGUF": ([CONFIG, "adapter-f16.gguf"], "gguf", "PEFT's two files"),
    "an archive in a folder": ([CONFIG, "adapter.tar.gz"], "archive", "Unpack"),
    "a run's state": ([CONFIG, "optimizer.pt", "rng_state.pth"], "no_weights", WEIGHTS),
    "two beside each other": ([*below("a"), *below("b")], "several_adapters", "a, b"),
    "two of which one is a checkpoint": ([*below("x/checkpoint-1"), *below("y")], "several_adapters", "y"),
    "two kinds of weights": ([CONFIG, "a.safetensors", "b.safetensors"], "several_weights", "a.safetensors"),
    "a missing shard": ([CONFIG, SHARDS[0], SHARDS[2]], "missing_shards", SHARDS[1]),
    "a shard of a billion": (
        [CONFIG, "adapter_model-00001-of-99999.safetensors"],
        "missing_shards",
        "adapter_model-00002-of-99999",
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_adapter_is_found(kind: str) -> None:
    paths, config, weights, notes = TAKEN[kind]
    chosen = select(reversed(paths))
    assert (chosen.config, list(chosen.weights)) == (config, weights)
    for part in notes:
        assert any(part in note for note in chosen.notes), chosen.notes
    assert bool(chosen.notes) == bool(notes)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_refusal_names_what_is_there_and_the_way_out(kind: str) -> None:
    paths, code, part = REFUSED[kind]
    with pytest.raises(Unreadable) as refusal:
        select(paths)
    finding = refusal.value.finding
    assert (finding.code, finding.field) == (code, "files")
    assert part in finding.message
