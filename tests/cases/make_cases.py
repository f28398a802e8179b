"""Adapters as other tools write them, for any Llama-like base model with linear modules of the usual names.

    python -m tests.cases.make_cases BASE_FOLDER OUT [name ...]

Each case is a folder. The kinds come from public reports: peft#1402, #1929, #2208, #2892, #2898, #3582; vllm#9275,
#9280, #10849, #32599, #34186, #41384, #41754, #55193; unsloth#125, #699; lmdeploy#1151, #2851; torchtune#2537;
tinker-cookbook#193; mlx-lm#1119; axolotl#3772; TensorRT-LLM#12848; LlamaFactory#9545, #10525; DeepSpeed#7900.
Nothing is copied from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from registry.models.base_model import linear_shapes

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
W, C = "adapter_model.safetensors", "adapter_config.json"
KINDS = ("q_proj", "v_proj", "down_proj")
STRENGTH = 0.06
CASES: dict[str, Callable[[Case], None]] = {}


class Case:
    """The folder to fill and the base model that the adapter is for."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.folder, self.base_folder = folder, base
        config = json.loads((base / "config.json").read_bytes())
        self.layers, self.shapes = config["num_hidden_layers"], linear_shapes(config)
        self.hidden, self.vocabulary = config["hidden_size"], config["vocab_size"]

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base_folder, dtype=torch.float32)

    def pair(self, name: str, kind: str, r: int) -> tuple[torch.Tensor, torch.Tensor]:
        out, width = self.shapes[kind]
        g = seeded(name)
        return torch.randn(r, width, generator=g) / width**0.5, torch.randn(out, r, generator=g) * STRENGTH

    def tensors(
        self,
        kinds: Iterable[str] = KINDS,
        r: int = 4,
        prefix: str = "base_model.model.model.",
        a: str = ".lora_A.weight",
        b: str = ".lora_B.weight",
    ) -> dict[str, torch.Tensor]:
        made = {}
        for layer in range(self.layers):
            for kind in kinds:
                name = module_of(layer, kind)
                made[f"{prefix}{name}{a}"], made[f"{prefix}{name}{b}"] = self.pair(name, kind, r)
        return made

    def write(self, weights: dict[str, torch.Tensor], conf: dict[str, Any], dtype: torch.dtype | None = None) -> None:
        if dtype:
            weights = {k: v.to(dtype) for k, v in weights.items()}
        save_file({k: v.contiguous() for k, v in weights.items()}, self.folder / W, metadata={"format": "pt"})
        (self.folder / C).write_text(json.dumps(conf, indent=2, sort_keys=True))

    def trained(self, conf: LoraConfig, model: Any = None, **save: Any) -> None:
        """PEFT itself: inject, set B by seed, save_pretrained."""
        model = get_peft_model(model or self.base(), conf)
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.data = torch.randn(p.shape, generator=seeded(name)) * STRENGTH
            if ".lora_A." in name and conf.init_lora_weights is True:
                p.data = torch.randn(p.shape, generator=seeded(name)) / p.shape[-1] ** 0.5
        self.saved(model, **save)

    def saved(self, model: Any, **save: Any) -> None:
        model.save_pretrained(str(self.folder), **save)
        (self.folder / "README.md").unlink(missing_ok=True)


def case(f: Callable[[Case], None]) -> Callable[[Case], None]:
    CASES[f.__name__.replace("_", "-")] = f
    return f


def module_of(layer: int, kind: str) -> str:
    group = "self_attn" if kind in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"layers.{layer}.{group}.{kind}"


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


def config(**over: Any) -> dict[str, Any]:
    """As PEFT of this environment writes it, all fields, for a causal model with a task type."""
    made = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(KINDS), task_type="CAUSAL_LM", base_model_name_or_path=HUB
    ).to_dict()
    made = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in made.items()}
    made.update(inference_mode=True)
    for key, value in over.items():
        if value is ...:
            made.pop(key, None)
        else:
            made[key] = value
    return made


def lora(**over: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": list(KINDS), "task_type": "CAUSAL_LM", **over})


@case
def plain(f: Case) -> None:
    f.write(f.tensors(), config())


@case
def fp16(f: Case) -> None:
    f.write(f.tensors(), config(), torch.float16)


@case
def bf16(f: Case) -> None:
    f.write(f.tensors(), config(), torch.bfloat16)


@case
def f64(f: Case) -> None:
    f.write(f.tensors(), config(), torch.float64)


@case
def fp8(f: Case) -> None:
    f.write(f.tensors(), config(), torch.float8_e4m3fn)


@case
def no_task_type(f: Case) -> None:
    f.trained(lora(task_type=None))


@case
def unsloth_auto_mapping(f: Case) -> None:
    f.write(
        f.tensors(),
        config(
            auto_mapping={
                "base_model_class": "LlamaForCausalLM",
                "parent_library": "transformers.models.llama.modeling_llama",
                "unsloth_fixed": True,
            },
            base_model_name_or_path="unsloth/SmolLM2-135M-Instruct",
        ),
    )


@case
def unsloth_bnb_4bit(f: Case) -> None:
    f.write(f.tensors(), config(base_model_name_or_path="unsloth/SmolLM2-135M-Instruct-bnb-4bit"))


@case
def base_is_hf_cache(f: Case) -> None:
    cached = "/root/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct"
    f.write(f.tensors(), config(base_model_name_or_path=f"{cached}/snapshots/93efa2f097d58c2a74874c7e644dbc9b0cee75a2"))


@case
def base_null(f: Case) -> None:
    f.write(f.tensors(), config(base_model_name_or_path=None))


@case
def base_other_same_shape(f: Case) -> None:
    f.write(f.tensors(), config(base_model_name_or_path="HuggingFaceTB/SmolLM2-135M"))


@case
def base_other_revision(f: Case) -> None:
    f.write(f.tensors(), config(revision="0123456789abcdef0123456789abcdef01234567"))


@case
def targets_regex(f: Case) -> None:
    f.trained(lora(target_modules=r".*\.(self_attn\.(q|v)_proj|mlp\.down_proj)"))


@case
def old_alpaca_keys(f: Case) -> None:
    f.write(f.tensors(), config(enable_lora=None, merge_weights=False))


@case
def future_keys_off(f: Case) -> None:
    f.write(f.tensors(), config(some_new_variant_config=None, use_some_new_variant=False))


@case
def rslora(f: Case) -> None:
    f.write(f.tensors(), config(use_rslora=True))


@case
def layers_to_transform(f: Case) -> None:
    f.trained(lora(layers_to_transform=list(range(f.layers // 2)), layers_pattern="layers"))


@case
def rank_pattern_unanchored(f: Case) -> None:
    f.trained(
        lora(
            rank_pattern={"down_proj": 8, "layers.3.self_attn.q_proj": 2},
            alpha_pattern={"down_proj": 16, "layers.3.self_attn.q_proj": 4},
        )
    )


@case
def rank_pattern_mixed_scale(f: Case) -> None:
    f.trained(lora(rank_pattern={"down_proj": 16}))


@case
def mixed_scale_some_layers(f: Case) -> None:
    f.trained(
        lora(layers_to_transform=list(range(f.layers // 2)), layers_pattern="layers", rank_pattern={"down_proj": 16})
    )


@case
def rank_pattern_regex(f: Case) -> None:
    key = r".*layers\.(0|1|2)\.self_attn\.q_proj"
    f.trained(lora(rank_pattern={key: 2}, alpha_pattern={key: 4}))


@case
def rank_pattern_never_matches(f: Case) -> None:  # peft#3582: every module has the plain alpha
    f.trained(lora(alpha_pattern={"^q_proj": 100}))


@case
def float_alpha(f: Case) -> None:
    f.write(f.tensors(), config(lora_alpha=8.0))


@case
def alpha_null(f: Case) -> None:
    f.write(f.tensors(), config(lora_alpha=None))


@case
def alpha_absent(f: Case) -> None:
    f.write(f.tensors(), config(lora_alpha=...))


@case
def r_absent(f: Case) -> None:
    f.write(f.tensors(r=8), config(r=..., lora_alpha=16))


@case
def r_zero(f: Case) -> None:
    f.write(f.tensors(), config(r=0))


@case
def rank_256(f: Case) -> None:
    f.write(f.tensors(("q_proj", "v_proj"), r=256), config(r=256, lora_alpha=512, target_modules=["q_proj", "v_proj"]))


@case
def keys_default(f: Case) -> None:
    f.write(f.tensors(a=".lora_A.default.weight", b=".lora_B.default.weight"), config())


@case
def keys_no_prefix(f: Case) -> None:
    f.write(f.tensors(prefix="model."), config())


@case
def keys_language_model(f: Case) -> None:
    f.write(f.tensors(prefix="base_model.model.model.language_model."), config())


@case
def keys_torchtune(f: Case) -> None:
    t = {}
    for layer in range(f.layers):
        for kind, own in (("q_proj", "attn.q_proj"), ("v_proj", "attn.v_proj"), ("down_proj", "mlp.w2")):
            A, B = f.pair(module_of(layer, kind), kind, 4)
            t[f"layers.{layer}.{own}.lora_a.weight"], t[f"layers.{layer}.{own}.lora_b.weight"] = A, B
    f.write(t, config())


@case
def tinker(f: Case) -> None:
    t = f.tensors(tuple(f.shapes))
    g = seeded("unembed")
    t["base_model.model.model.unembed_tokens.lora_A.weight"] = torch.randn(4, f.hidden, generator=g) / f.hidden**0.5
    t["base_model.model.model.unembed_tokens.lora_B.weight"] = torch.randn(f.vocabulary, 4, generator=g) * STRENGTH
    f.write(t, config(target_modules="all-linear", base_model_name_or_path=HUB))


@case
def mlx(f: Case) -> None:
    t = {}
    for layer in range(f.layers):
        for kind in ("q_proj", "v_proj"):
            A, B = f.pair(module_of(layer, kind), kind, 8)
            t[f"model.{module_of(layer, kind)}.lora_a"] = A.T
            t[f"model.{module_of(layer, kind)}.lora_b"] = B.T
    save_file({k: v.contiguous() for k, v in t.items()}, f.folder / "adapters.safetensors", metadata={"format": "mlx"})
    (f.folder / C).write_text(
        json.dumps(
            {
                "model": HUB,
                "fine_tune_type": "lora",
                "num_layers": 30,
                "iters": 600,
                "lora_parameters": {
                    "rank": 8,
                    "scale": 2.0,
                    "dropout": 0.0,
                    "keys": ["self_attn.q_proj", "self_attn.v_proj"],
                },
            },
            indent=1,
        )
    )


@case
def modules_to_save_lm_head(f: Case) -> None:
    f.trained(lora(modules_to_save=["lm_head"]))


@case
def resized_vocabulary(f: Case) -> None:  # embed_tokens lies beside the LoRA, the configuration is clean
    model = f.base()
    model.resize_token_embeddings(f.vocabulary + 2)
    f.trained(lora(), model, save_embedding_layers=True)


@case
def embeddings_unchanged(f: Case) -> None:
    f.trained(lora(), save_embedding_layers=True)


@case
def lm_head_lora(f: Case) -> None:
    f.trained(lora(target_modules=["q_proj", "v_proj", "lm_head"]))


@case
def trainable_token_indices(f: Case) -> None:
    f.trained(lora(trainable_token_indices=[1, 2]))


@case
def dora(f: Case) -> None:
    f.trained(lora(use_dora=True))


@case
def bias_lora_only(f: Case) -> None:
    f.write(f.tensors(), config(bias="lora_only"))


@case
def pissa(f: Case) -> None:
    f.trained(lora(init_lora_weights="pissa_niter_4"))


@case
def fan_in_fan_out(f: Case) -> None:
    f.write(f.tensors(), config(fan_in_fan_out=True))


@case
def target_parameters(f: Case) -> None:
    f.write(f.tensors(), config(target_parameters=["mlp.experts.gate_up_proj"]))


def other(f: Case, kind: str, **kw: Any) -> None:
    model = get_peft_model(
        f.base(), getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **kw)
    )
    f.saved(model)


@case
def type_loha(f: Case) -> None:
    other(f, "LoHaConfig", r=4)


@case
def type_ia3(f: Case) -> None:
    other(f, "IA3Config", feedforward_modules=[])


@case
def type_vera(f: Case) -> None:
    other(f, "VeraConfig", r=8)


@case
def type_adalora(f: Case) -> None:
    other(f, "AdaLoraConfig", init_r=6, target_r=4, total_step=10)


@case
def b_all_zero(f: Case) -> None:
    f.write({k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in f.tensors().items()}, config())


@case
def a_all_zero(f: Case) -> None:
    f.write({k: torch.zeros_like(v) if ".lora_A." in k else v for k, v in f.tensors().items()}, config())


@case
def fsdp_one_of_eight(f: Case) -> None:  # only rank 0's rows of B were written
    t = f.tensors()
    for k, v in t.items():
        if ".lora_B." in k:
            v[v.shape[0] // 8 :] = 0
    f.write(t, config())


@case
def config_names_less(f: Case) -> None:  # PEFT would leave down_proj out, its tensors are in the file
    f.write(f.tensors(), config(target_modules=["q_proj", "v_proj"]))


@case
def zero3_empty_tensors(f: Case) -> None:
    f.write({k: torch.zeros(0) for k in f.tensors()}, config())


@case
def zero3_40_bytes(f: Case) -> None:
    f.write({}, config())


@case
def bin_pickle(f: Case) -> None:
    torch.save(f.tensors(), f.folder / "adapter_model.bin")
    (f.folder / C).write_text(json.dumps(config(), indent=1))


@case
def sharded(f: Case) -> None:
    items = list(f.tensors().items())
    half = len(items) // 2
    save_file(dict(items[:half]), f.folder / "adapter_model-00001-of-00002.safetensors")
    save_file(dict(items[half:]), f.folder / "adapter_model-00002-of-00002.safetensors")
    (f.folder / "adapter_model.safetensors.index.json").write_text(
        json.dumps(
            {
                "metadata": {},
                "weight_map": {
                    k: f"adapter_model-0000{1 if i < half else 2}-of-00002.safetensors"
                    for i, (k, _) in enumerate(items)
                },
            }
        )
    )
    (f.folder / C).write_text(json.dumps(config(), indent=1))


@case
def run_folder(f: Case) -> None:  # what a trainer leaves: the adapter lies in checkpoint-20/
    newest = f.folder / "checkpoint-20"
    newest.mkdir()
    f.write(f.tensors(), config())
    for name in (W, C):
        (f.folder / name).rename(newest / name)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (newest / name).write_bytes(b"x")
    (newest / "trainer_state.json").write_text("{}")
    (f.folder / "README.md").write_text("x")


@case
def gguf_lora(f: Case) -> None:
    (f.folder / W).write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 64)
    (f.folder / C).write_text(json.dumps(config()))


def make(name: str, base: Path, folder: Path) -> Path:
    """Write the case into a new folder and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    CASES[name](Case(base, folder))
    return folder


if __name__ == "__main__":
    for name in sys.argv[3:] or CASES:
        made = make(name, Path(sys.argv[1]), Path(sys.argv[2]) / name)
        sys.stdout.write(f"{name} {sorted(path.name for path in made.iterdir())}\n")
