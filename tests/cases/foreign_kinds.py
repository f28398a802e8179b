"""Adapters as other trainers and tools write them, over the tiny Llama of `tests/builders/adapters.py`.

Each kind is made from the same matrices, so that whatever is accepted must compute the same update, `SCALE` * B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.builders.adapters import LAYERS, SHAPES, module_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK, SCALE = 4, 2.0
MODULES = [module_name(layer, kind) for layer in range(LAYERS) for kind in SHAPES]
Factors = dict[str, tuple[np.ndarray, np.ndarray]]
Tensors = dict[str, np.ndarray]


def factors(rank: int = RANK) -> Factors:
    """The matrices A (rank, in) and B (out, rank) of every module."""
    random = np.random.default_rng(7)
    pairs = {}
    for module in MODULES:
        out, width = SHAPES[module.rpartition(".")[2]]
        a, b = random.normal(size=(rank, width)), random.normal(size=(out, rank))
        pairs[module] = (a.astype(np.float32), b.astype(np.float32))
    return pairs


def plain_config(**changed: Any) -> dict[str, Any]:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/tiny",
        "r": RANK,
        "lora_alpha": RANK * SCALE,
        "target_modules": sorted(SHAPES),
        "bias": "none",
        "inference_mode": True,
    }
    return {**config, **changed}


def named(pattern: str = "base_model.model.{module}.lora_{side}.weight", only: str = "") -> Tensors:
    """The matrices under other names; `only` keeps the modules in whose name it stands."""
    return {
        pattern.format(module=module, side=side, lower=side.lower()): matrix
        for module, pair in factors().items()
        for side, matrix in zip("AB", pair, strict=True)
        if only in module
    }


def write(folder: Path, tensors: Tensors | None = None, raw_config: bytes | None = None, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named() if tensors is None else tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.dumps(plain_config(**changed)).encode() if raw_config is None else raw_config
    (folder / CONFIG).write_bytes(config)
    return folder


def with_weights(folder: Path, raw: bytes) -> Path:
    write(folder)
    (folder / WEIGHTS).write_bytes(raw)
    return folder


def kohya(down: str, up: str) -> Tensors:
    """Names of image trainers: the module's dots are underlines, and each module has an alpha of its own."""
    tensors: Tensors = {}
    for module, (a, b) in factors().items():
        name = module.replace(".", "_")
        tensors[f"{down}".format(name=name)], tensors[f"{up}".format(name=name)] = a, b
        tensors[f"lora_te_{name}.alpha"] = np.array(RANK * SCALE, np.float32)
    return tensors


def fused() -> Tensors:
    random = np.random.default_rng(3)
    return {
        f"base_model.model.model.layers.{layer}.self_attn.qkv_proj.lora_{side}.weight": random.normal(
            size=shape
        ).astype(np.float32)
        for layer in range(LAYERS)
        for side, shape in (("A", (RANK, 16)), ("B", (32, RANK)))
    }


def two_of_one_name() -> bytes:
    """A file whose header holds one name twice."""
    entry = '"dtype":"F32","shape":[1],"data_offsets":'
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = f'{{"{name}":{{{entry}[0,4]}},"{name}":{{{entry}[4,8]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def other_types(**types: Any) -> Tensors:
    """The matrices in other types of numbers: by side, `A` or `B`."""
    return {
        name: matrix.astype(types.get(re.split(r"lora_", name)[1][0], np.float32)) for name, matrix in named().items()
    }


def mixed(folder: Path) -> Path:
    """A in bfloat16, which numpy lacks, and B in float16."""
    import torch
    from safetensors.torch import save_file as save_tensors

    write(folder)
    types = {"A": torch.bfloat16, "B": torch.float16}
    tensors = {name: torch.from_numpy(matrix).to(types[name.split("lora_")[1][0]]) for name, matrix in named().items()}
    save_tensors(tensors, folder / WEIGHTS)
    return folder


def by_ranks(pattern: dict[str, int]) -> Tensors:
    """Matrices whose rank a pattern of whole module names says; zeros pad the higher ones."""
    tensors = named()
    for module, rank in pattern.items():
        a, b = factors()[module]
        name = f"base_model.model.{module}.lora_"
        tensors[f"{name}A.weight"] = np.pad(a, ((0, rank - RANK), (0, 0)))
        tensors[f"{name}B.weight"] = np.pad(b, ((0, 0), (0, rank - RANK)))
    return tensors


@dataclass(frozen=True)
class Accepted:
    """A kind that is served: how it is made, the notices that it comes with, and the modules that it adapts."""

    make: Callable[[Path], Path]
    notices: set[str] = field(default_factory=set)
    only: str = ""


@dataclass(frozen=True)
class Refused:
    """A kind that is not: the code and field of its fault, and a part of the sentence that says why or what to do."""

    make: Callable[[Path], Path]
    code: str
    field: str
    part: str


SECOND_LAYER = [name for name in MODULES if ".layers.1." in name]
WRITTEN_BY_AXOLOTL = {
    **dict.fromkeys(("corda_config", "eva_config", "exclude_modules", "trainable_token_indices", "layer_replication")),
    **{"lora_bias": False, "loftq_config": {}, "use_qalora": False, "qalora_group_size": 16, "target_parameters": []},
}
ACCEPTED: dict[str, Accepted] = {
    "axolotl": Accepted(lambda at: write(at, base_model_name_or_path="/workspace/models/tiny/", **WRITTEN_BY_AXOLOTL)),
    "llama-factory": Accepted(
        lambda at: write(
            at,
            base_model_name_or_path="../models/tiny",
            target_modules=[*SHAPES, "q_proj"],
            modules_to_save=[],
            init_lora_weights=True,
        )
    ),
    "ms-swift": Accepted(
        lambda at: write(at, lora_dtype=None, lorap_lr_ratio=None, lorap_emb_lr=1e-6), {"fields_ignored"}
    ),
    "unsloth, vision's pattern": Accepted(
        lambda at: write(
            at,
            base_model_name_or_path="unsloth/tiny-unsloth-bnb-4bit",
            auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
            target_modules=r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?"
            r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)",
            alora_invocation_tokens=None,
        ),
        {"base_quantised", "targets_pattern"},
    ),
    "with what saved it": Accepted(
        lambda at: write(
            at,
            transformers_version="4.57.1",
            quantization_config={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            torch_dtype="bfloat16",
            unsloth_version="2025.9.1",
        ),
        {"fields_ignored"},
    ),
    "tied weights": Accepted(lambda at: write(at, ensure_weight_tying=True)),
    "DeepSpeed's wrapper": Accepted(
        lambda at: write(at, named("module.base_model.model.{module}.lora_{side}.weight")), {"renamed"}
    ),
    "torch.compile's wrapper": Accepted(
        lambda at: write(at, named("_orig_mod.base_model.model.{module}.lora_{side}.weight")), {"renamed"}
    ),
    "Lightning's names": Accepted(
        lambda at: write(at, named("model.base_model.model.{module}.lora_{side}.default.weight")), {"renamed"}
    ),
    "an adapter's own name": Accepted(
        lambda at: write(at, named("base_model.model.{module}.lora_{side}.sft_v2.weight")), {"renamed"}
    ),
    "a text model within an image model": Accepted(
        lambda at: write(at, named("base_model.model.model.text_model.{module}.lora_{side}.weight")), {"renamed"}
    ),
    "TRL's model with a value head": Accepted(
        lambda at: write(at, named("pretrained_model.base_model.model.{module}.lora_{side}.default.weight")),
        {"renamed"},
    ),
    "an actor of reinforcement learning": Accepted(
        lambda at: write(at, named("actor_module.base_model.model.{module}.lora_{side}.weight")), {"renamed"}
    ),
    "a classifier's task without its head": Accepted(lambda at: write(at, task_type="SEQ_CLS"), {"task_type"}),
    "a base model as text of Python": Accepted(lambda at: write(at, base_model_name_or_path="None"), {"base_unnamed"}),
    "a base model with its branch": Accepted(lambda at: write(at, base_model_name_or_path="acme/tiny@main")),
    "a base model with its commit": Accepted(
        lambda at: write(at, base_model_name_or_path="acme/tiny@0123456789abcdef"), {"base_revision"}
    ),
    "without the weights' ending": Accepted(
        lambda at: write(at, named("base_model.model.{module}.lora_{side}")), {"renamed"}
    ),
    "A in float16, B in float32": Accepted(lambda at: write(at, other_types(A=np.float16))),
    "A in bfloat16, B in float16": Accepted(mixed),
    "a byte-order mark": Accepted(
        lambda at: write(at, raw_config=b"\xef\xbb\xbf" + json.dumps(plain_config()).encode())
    ),
    "UTF-16 from Windows": Accepted(lambda at: write(at, raw_config=json.dumps(plain_config()).encode("utf-16"))),
    "rsLoRA": Accepted(lambda at: write(at, use_rslora=True, lora_alpha=SCALE * RANK**0.5)),
    "one layer by its number": Accepted(
        lambda at: write(at, named(only=".layers.1."), layers_to_transform=1), only=".layers.1."
    ),
    "layers by a list and a pattern": Accepted(
        lambda at: write(at, named(only=".layers.1."), layers_to_transform=[1], layers_pattern="layers"),
        only=".layers.1.",
    ),
    "excluded modules": Accepted(lambda at: write(at, named(only="mlp"), exclude_modules=r".*self_attn.*"), only="mlp"),
    "whole names": Accepted(lambda at: write(at, target_modules=MODULES)),
    "a name that the base model lacks": Accepted(
        lambda at: write(at, target_modules=[*SHAPES, "c_attn", "lm_head_extra"])
    ),
    "ranks by patterns": Accepted(
        lambda at: write(
            at,
            by_ranks({name: 6 for name in MODULES if name.endswith(("q_proj", "v_proj"))}),
            rank_pattern={r".*self_attn\.(q|v)_proj": 6},
            alpha_pattern={r".*\.[qv]_proj": 6 * SCALE},
        )
    ),
    "ranks by layers": Accepted(
        lambda at: write(
            at,
            by_ranks(dict.fromkeys(SECOND_LAYER, 5)),
            rank_pattern={r"model\.layers\.1\..*": 5},
            alpha_pattern={r"layers\.1\.\w+\.\w+": 5 * SCALE},
        )
    ),
    "a start that leaves the base model": Accepted(
        lambda at: write(at, init_lora_weights="eva", eva_config={"rho": 2})
    ),
    "no base model": Accepted(lambda at: write(at, base_model_name_or_path=""), {"base_unnamed"}),
    "LoRA-FA and LoRA+": Accepted(lambda at: write(at, lora_dropout=0, use_rslora=None, peft_version="0.9.0")),
}
# Names of copies with fewer bits, by who writes them.
QUANTISED = (
    *("unsloth/tiny-bnb-4bit", "unsloth/tiny-unsloth-bnb-4bit", "acme/tiny-4bit", "mlx-community/tiny-8bit"),
    *("TheBloke/tiny-GPTQ", "TheBloke/tiny-AWQ", "TheBloke/tiny-GGUF", "acme/tiny-AWQ-INT4", "acme/tiny-GPTQ-Int8"),
    *("RedHatAI/tiny-FP8-dynamic", "neuralmagic/tiny-quantized.w4a16", "acme/tiny-W8A8", "acme/tiny-nf4"),
    *("acme/tiny-hqq-4bit", "turboderp/tiny-exl2", "acme/tiny-4.0bpw-exl2", "acme/tiny-EXL3", "acme/tiny-Q4_K_M"),
    *(
        "acme/tiny-Q8_0-GGUF",
        "pytorch/tiny-torchao-int4",
        "pytorch/tiny-INT4-AWQ",
        "acme/tiny-8da4w",
        "acme/tiny-mxfp4",
    ),
    *(
        "nvidia/tiny-NVFP4",
        "acme/tiny-gptqmodel-4bit",
        "acme/tiny-autoround-int4",
        "acme/tiny-4bit-128g",
        "acme/tiny-IQ4_NL",
    ),
    *("acme/tiny-IQ3_XS", "Intel/tiny-int4-AutoRound", "acme/tiny-6bit", "acme/tiny-3bit", "acme/tiny-QAT-4bit"),
    *("acme/tiny-SpinQuant", "acme/tiny-ptq-int8", "acme/tiny-FP4", "acme/tiny-MLX-4bit", "acme/tiny-dwq"),
)
# Names of other models, of which a copy with fewer bits is none of ours.
OTHER = ("acme/tiny-2", "acme/tiny-instruct", "acme/tiny-7b-4bit", "acme/smaller", "acme/tiny-chat-AWQ", "acme/tiny-4b")


def layer_of(before: str) -> Callable[[Path], Path]:
    return lambda at: write(at, named(f"{before}{{module}}.lora_{{side}}.weight"))


def extra(name: str, *shape: int, **config: Any) -> Callable[[Path], Path]:
    """The plain adapter with one tensor more."""
    return lambda at: write(at, {**named(), name: np.ones(shape, np.float32)}, **config)


REFUSED: dict[str, Refused] = {
    "kohya": Refused(
        lambda at: write(at, kohya("lora_te_{name}.lora_down.weight", "lora_te_{name}.lora_up.weight")),
        *("kohya", WEIGHTS, "adapterhub push"),
    ),
    "diffusers": Refused(
        lambda at: write(
            at,
            {
                f"{module}.lora.{side}.weight": matrix
                for module, pair in factors().items()
                for side, matrix in zip(("down", "up"), pair, strict=True)
            },
        ),
        *("kohya", WEIGHTS, "adapterhub push"),
    ),
    "mistral-finetune": Refused(
        lambda at: write(
            at,
            {
                f"layers.0.attention.wq.lora_{side}.weight": matrix
                for side, matrix in zip("AB", factors()[MODULES[0]], strict=True)
            },
        ),
        *("meta_names", WEIGHTS, "order"),
    ),
    "NeMo": Refused(
        lambda at: write(
            at,
            {
                f"model.decoder.layers.0.self_attention.linear_qkv.adapter.linear_{side}.weight": np.ones((4, 4), "f4")
                for side in ("in", "out")
            },
        ),
        *("megatron", WEIGHTS, "Hugging Face"),
    ),
    "LitGPT": Refused(
        lambda at: write(at, {"transformer.h.0.attn.qkv.lora_A": np.ones((4, 16), "f4")}),
        *("litgpt", WEIGHTS, "Hugging Face"),
    ),
    "fused queries, keys and values": Refused(
        lambda at: write(at, fused(), target_modules=["qkv_proj"]), *("fused", WEIGHTS, "q_proj, k_proj and v_proj")
    ),
    "fused gate and up": Refused(
        lambda at: write(
            at,
            {
                "base_model.model.model.layers.0.mlp.gate_up_proj.lora_A.weight": np.ones((4, 16), "f4"),
                "base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight": np.ones((64, 4), "f4"),
            },
            target_modules=["gate_up_proj"],
        ),
        *("fused", WEIGHTS, "gate_proj and up_proj"),
    ),
    "an image tower": Refused(
        extra("base_model.model.visual.blocks.0.attn.qkv.lora_A.weight", 4, 4), *("vision", WEIGHTS, "text")
    ),
    "a value head": Refused(extra("v_head.summary.weight", 1, 16), *("head", WEIGHTS, "head")),
    "a classifier": Refused(
        extra("base_model.model.score.weight", 2, 16, task_type="SEQ_CLS", modules_to_save=["classifier", "score"]),
        *("head", WEIGHTS, "head"),
    ),
    "biases of LoRA": Refused(
        extra("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", 16, lora_bias=True),
        *("bias", WEIGHTS, "register the result"),
    ),
    "modules_to_save that were not saved": Refused(
        lambda at: write(at, modules_to_save=["lm_head"]),
        *("bad_field", f"{CONFIG}.modules_to_save", "register the result"),
    ),
    "bias = all": Refused(lambda at: write(at, bias="all"), *("bad_field", f"{CONFIG}.bias", "bias = none")),
    "a method that is no text": Refused(
        lambda at: write(at, peft_type=["LORA"]), *("other_method", f"{CONFIG}.peft_type", "not named")
    ),
    "a method in small letters": Refused(
        lambda at: write(at, peft_type="lora"), *("other_method", f"{CONFIG}.peft_type", "Write LORA")
    ),
    "a method as Python prints it": Refused(
        lambda at: write(at, peft_type="PeftType.LORA"), *("other_method", f"{CONFIG}.peft_type", "Write LORA")
    ),
    "a whole model's configuration": Refused(
        lambda at: write(at, raw_config=json.dumps({"hidden_size": 16, "vocab_size": 40}).encode()),
        *("other_method", f"{CONFIG}.peft_type", "configuration of a whole model"),
    ),
    "PEFT's configuration inside another": Refused(
        lambda at: write(at, raw_config=json.dumps({"default": plain_config()}).encode()),
        *("other_method", f"{CONFIG}.peft_type", "in 'default'"),
    ),
    "an actor and its critic": Refused(
        lambda at: write(
            at,
            named("actor.base_model.model.{module}.lora_{side}.weight")
            | named("critic.base_model.model.{module}.lora_{side}.weight"),
        ),
        *("unknown_tensor", WEIGHTS, "critic"),
    ),
    "prompt tuning": Refused(
        lambda at: write(at, {"prompt_embeddings": np.ones((8, 16), "f4")}, peft_type="PROMPT_TUNING"),
        *("other_method", f"{CONFIG}.peft_type", "Train a LoRA"),
    ),
    "prefix tuning": Refused(
        lambda at: write(at, {"prompt_embeddings": np.ones((8, 16), "f4")}, peft_type="PREFIX_TUNING"),
        *("other_method", f"{CONFIG}.peft_type", "Train a LoRA"),
    ),
    "X-LoRA": Refused(
        lambda at: write(at, peft_type="XLORA"), *("other_method", f"{CONFIG}.peft_type", "each of them")
    ),
    "OFT": Refused(
        lambda at: write(at, peft_type="OFT"), *("other_method", f"{CONFIG}.peft_type", "register the result")
    ),
    "LoftQ": Refused(
        lambda at: write(at, init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
        *("bad_field", f"{CONFIG}.init_lora_weights", "path_initial_model"),
    ),
    "PiSSA by fast SVD": Refused(
        lambda at: write(at, init_lora_weights="pissa_niter_16"),
        *("bad_field", f"{CONFIG}.init_lora_weights", "path_initial_model"),
    ),
    "OLoRA": Refused(
        lambda at: write(at, init_lora_weights="olora"),
        *("bad_field", f"{CONFIG}.init_lora_weights", "as it is. OLoRA changes it"),
    ),
    "an initialisation of tomorrow": Refused(
        lambda at: write(at, init_lora_weights="future"),
        *("bad_field", f"{CONFIG}.init_lora_weights", "'future' is not known to"),
    ),
    "CorDA": Refused(
        lambda at: write(at, init_lora_weights="corda", corda_config={"corda_method": "ipm"}),
        *("bad_field", f"{CONFIG}.init_lora_weights", "path_initial_model"),
    ),
    "repeated layers": Refused(
        lambda at: write(at, layer_replication=[[0, 2], [1, 2]]),
        *("bad_field", f"{CONFIG}.layer_replication", "register the result"),
    ),
    "activated LoRA": Refused(
        lambda at: write(at, alora_invocation_tokens=[5, 6]),
        *("bad_field", f"{CONFIG}.alora_invocation_tokens", "whole prompt"),
    ),
    "transposed matrices": Refused(
        lambda at: write(at, {name: np.ascontiguousarray(matrix.T) for name, matrix in named().items()}),
        *("bad_shape", WEIGHTS, "transposed"),
    ),
    "A and B exchanged": Refused(
        lambda at: write(
            at,
            {
                name.replace("lora_A", "x").replace("lora_B", "lora_A").replace("x", "lora_B"): matrix
                for name, matrix in named().items()
            },
        ),
        *("bad_shape", WEIGHTS, "exchanged"),
    ),
    "a larger base model's": Refused(
        lambda at: write(
            at,
            {
                **named(),
                "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": np.ones((4, 16), "f4"),
                "base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight": np.ones((16, 4), "f4"),
            },
        ),
        *("unknown_module", WEIGHTS, "2 layers"),
    ),
    "half of a module": Refused(
        lambda at: write(at, {name: matrix for name, matrix in named().items() if "1.mlp.up_proj.lora_B" not in name}),
        *("bad_shape", WEIGHTS, "has A and no B"),
    ),
    "one tensor twice": Refused(
        lambda at: with_weights(at, two_of_one_name()), *("bad_header", WEIGHTS, "names one tensor twice")
    ),
    "two adapters in one file": Refused(
        lambda at: write(
            at,
            named("base_model.model.{module}.lora_{side}.default.weight")
            | named("base_model.model.{module}.lora_{side}.second.weight"),
        ),
        *("several_adapters", WEIGHTS, "folder of its own"),
    ),
    "another rank than the file's": Refused(lambda at: write(at, r=16), *("other_rank", f"{CONFIG}.r", "has rank 4")),
    "a rank as text": Refused(lambda at: write(at, r="4"), *("bad_field", f"{CONFIG}.r", "whole number")),
    "alpha 0": Refused(lambda at: write(at, lora_alpha=0), *("bad_field", f"{CONFIG}.lora_alpha", "positive")),
    "a dropout that is no number": Refused(
        lambda at: write(at, lora_dropout=float("nan")), *("bad_field", f"{CONFIG}.lora_dropout", "from 0 to 1")
    ),
    "a pattern with look-around": Refused(
        lambda at: write(at, rank_pattern={r"(?<!k)_proj": 4}),
        *("bad_pattern", f"{CONFIG}.rank_pattern", "full module"),
    ),
    "whole numbers": Refused(lambda at: write(at, other_types(A=np.int8)), *("dtype", WEIGHTS, "float32")),
    "a pointer as configuration": Refused(
        lambda at: write(at, raw_config=b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
        *("no_json", CONFIG, "git lfs pull"),
    ),
    "a web page as configuration": Refused(
        lambda at: write(at, raw_config=b"<!DOCTYPE html><html>Sign in</html>"), *("no_json", CONFIG, "sign in")
    ),
    "YAML as configuration": Refused(
        lambda at: write(at, raw_config=b"base_model: tiny\nadapter: qlora\nlora_r: 8\n"), *("no_json", CONFIG, "YAML")
    ),
    "half a configuration": Refused(
        lambda at: write(at, raw_config=json.dumps(plain_config()).encode()[:-9]), *("no_json", CONFIG, "ends early")
    ),
    "an empty configuration": Refused(lambda at: write(at, raw_config=b""), *("no_json", CONFIG, "empty")),
    "an empty file of weights": Refused(lambda at: with_weights(at, b""), *("no_safetensors", WEIGHTS, "empty")),
    "a cut file of weights": Refused(
        lambda at: with_weights(at, (write(at) / WEIGHTS).read_bytes()[:-64]), *("bad_header", WEIGHTS, "ends early")
    ),
    "a pointer as weights": Refused(
        lambda at: with_weights(at, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"),
        *("no_safetensors", WEIGHTS, "git lfs pull"),
    ),
    "numpy's archive of old MLX": Refused(
        lambda at: with_weights(at, b"PK\x03\x04" + bytes(60) + b"layers.0.npy"), *("no_safetensors", WEIGHTS, "zip")
    ),
    "a tar": Refused(
        lambda at: with_weights(at, bytes(257) + b"ustar\x0000" + bytes(500)), *("no_safetensors", WEIGHTS, "tar")
    ),
    "an unknown option that is on": Refused(
        lambda at: write(at, use_future=True), *("unknown_field", f"{CONFIG}.use_future", "Remove it")
    ),
    "experts": Refused(
        extra("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight", 4, 16),
        *("experts", WEIGHTS, "register the result"),
    ),
    "a router of experts": Refused(
        extra("base_model.model.model.layers.0.mlp.gate.lora_A.weight", 4, 16),
        *("experts", WEIGHTS, "register the result"),
    ),
    "GPT-2's modules": Refused(
        lambda at: write(at, {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.ones((4, 16), "f4")}),
        *("other_architecture", WEIGHTS, "trained on"),
    ),
    "whole linear modules": Refused(
        extra("base_model.model.model.layers.0.self_attn.q_proj.weight", 16, 16, modules_to_save=["q_proj"]),
        *("whole_modules", WEIGHTS, "register"),
    ),
    "norms": Refused(
        extra("base_model.model.model.norm.weight", 16, modules_to_save=["norm"]),
        *("whole_modules", WEIGHTS, "register"),
    ),
}
