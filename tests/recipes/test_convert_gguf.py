"""A GGUF written by hand from a tiny model comes back as the same model, with the same weights to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.tiny_model import make_model
from training.recipes import convert_gguf

VOCABULARY = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(chr(ord("a") + place) for place in range(26)),
    "ab",
    *(f"x{place}" for place in range(7)),
]


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, *, architecture: str = "llama", tied: bool = False) -> Path:
    config, writer = model.config, gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["a b"])
    for kind, token in (("bos", 1), ("eos", 2), ("pad", 2), ("unk", 0)):
        getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        array, module = tensor.numpy(), name.removesuffix(".weight")
        turned = heads.get(module.rpartition(".")[2])
        writer.add_tensor(f"{names.get_name(module)}.weight", permuted(array, turned) if turned else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_comes_back(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = make_model()
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    source = write_gguf(tmp_path / "tiny.gguf", model, tied=tied)
    assert convert_gguf.main([str(source), str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.tie_word_embeddings is tied
    ids = torch.arange(12)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("<|im_start|>ac")["input_ids"]) == ["<|im_start|>", "a", "c"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


@pytest.mark.slow
def test_the_folder_needs_no_gguf(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", make_model())
    assert convert_gguf.main([str(source), str(tmp_path / "out")]) == 0
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"M.from_pretrained({str(tmp_path / 'out')!r}); T.from_pretrained({str(tmp_path / 'out')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_is_none_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no GGUF" * 10)
    assert convert_gguf.main([str(tmp_path / "no.gguf"), str(tmp_path / "out")]) == 2
    assert "not a GGUF file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert_gguf.main([str(tmp_path / "none.gguf"), str(tmp_path / "out")]) == 2


def test_another_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_gguf(tmp_path / "other.gguf", make_model(), architecture="wavtokenizer-dec")
    assert convert_gguf.main([str(source), str(tmp_path / "out")]) == 2
    assert "transformers cannot read it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    source = write_gguf(tmp_path / "tiny.gguf", make_model())
    assert convert_gguf.main([str(source), str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err
