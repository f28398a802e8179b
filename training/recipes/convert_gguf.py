"""A GGUF file of the Llama architecture as a folder that transformers loads: `python -m ... FILE.gguf OUT_DIR`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

# transformers reads the same weights, but takes 1.6 times as long, and its config.json changes with its release: that
# file is a part of the base model's digest, and engines with an older transformers do not find the rotary base in it.
Weights = dict[str, NDArray[np.float32]]

OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Unsupported(ValueError):
    """The file is no GGUF, or holds an architecture or tensor other than Llama's."""


def main(arguments: list[str] | None = None) -> int:
    """Convert the named file; return the exit status: 0, or 2 when it cannot be converted."""
    parser = argparse.ArgumentParser(prog="python -m training.recipes.convert_gguf", description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    try:
        convert(options.gguf, options.output)
    except (Unsupported, OSError) as error:
        sys.stderr.write(f"{options.gguf}: {error}\n")
        return 2
    return 0


def convert(source: Path, output: Path) -> None:
    """Write the converted model atomically. Raises Unsupported, and FileExistsError when `output` exists."""
    if output.exists():
        raise FileExistsError(f"{output} already exists: remove it, or name another folder.")
    if not source.is_file():
        raise Unsupported("There is no such file.")
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_folder(source, part)
    part.rename(output)


def write_folder(source: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of the file. Raises Unsupported."""
    from safetensors.numpy import save_file

    reader = open_gguf(source)
    config = config_of(reader)
    weights = read_weights(reader, config["num_attention_heads"], config["num_key_value_heads"])
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_tokenizer(source, folder)


def open_gguf(source: Path) -> GGUFReader:
    """Open the file. Raises Unsupported."""
    try:
        return GGUFReader(source)
    except (ValueError, IndexError) as error:
        raise Unsupported(f"This is not a GGUF file: {error}.") from None


def config_of(reader: GGUFReader) -> dict[str, Any]:
    """Convert the metadata to transformers' LlamaConfig. Raises Unsupported for another architecture."""
    architecture = value(reader, "general.architecture")
    if architecture != "llama":
        raise Unsupported(f"The architecture is {architecture}; only llama can be converted.")
    heads = value(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": value(reader, "llama.embedding_length"),
        "intermediate_size": value(reader, "llama.feed_forward_length"),
        "max_position_embeddings": value(reader, "llama.context_length"),
        "num_attention_heads": heads,
        "num_hidden_layers": value(reader, "llama.block_count"),
        "num_key_value_heads": value(reader, "llama.attention.head_count_kv", heads),
        "rms_norm_eps": float(f"{value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": value(reader, "llama.rope.freq_base", 10000.0),
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "bos_token_id": value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": value(reader, "tokenizer.ggml.padding_token_id", None),
    }


def value(reader: GGUFReader, key: str, *default: Any) -> Any:
    """Return a value of the metadata, or the default. Raises Unsupported without one."""
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default:
        return default[0]
    raise Unsupported(f"The metadata has no {key}.")


def read_weights(reader: GGUFReader, heads: int, key_heads: int) -> Weights:
    """Read every tensor in float32 under transformers' name."""
    weights: Weights = {}
    for tensor in reader.tensors:
        name = transformers_name(tensor.name)
        if name is None:
            continue
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        turned = {"q_proj.weight": heads, "k_proj.weight": key_heads}.get(name.split(".", 4)[-1])
        weights[name] = unpermute(array, turned) if turned else np.ascontiguousarray(array)
    return weights


def transformers_name(name: str) -> str | None:
    """Return transformers' name of a tensor; None for rotary frequencies, which follow from the configuration."""
    if name in OUTER:
        return OUTER[name]
    prefix, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    kind = rest.removesuffix(".weight")
    if prefix == "blk" and kind in INNER:
        return f"model.layers.{layer}.{INNER[kind]}.weight"
    if name == "rope_freqs.weight":
        return None
    raise Unsupported(f"Tensor {name} is not one of Llama's.")


def unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder rows (heads, dim/2, 2) to (heads, 2, dim/2): GGUF rotates neighbours, transformers rotates halves."""
    halves = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def save_tokenizer(source: Path, folder: Path) -> None:
    """Convert the file's tokenizer with transformers and save it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer.save_pretrained(str(folder))


if __name__ == "__main__":
    sys.exit(main())
