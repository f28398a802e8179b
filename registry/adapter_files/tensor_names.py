"""The names of an adapter's tensors, as PEFT and other tools write them. Pure.

PEFT's own name is `base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight`. Names that differ from it by the
wrappers of training frameworks, the adapter's own name or a missing beginning are read as PEFT would have written them.
The layouts of other tools are recognised, so that the refusal can say how to convert them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from registry.adapter_files.findings import Finding, fault, listed
from serving_client.regex import Pattern
from serving_client.regex import compiled as linear

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
GROUPS = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn")
GROUPS |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp")
# Parts that frameworks put into names, which say nothing of the module.
WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module|_forward_module|base_layer)\.")
LORA = re.compile(
    r"(?P<before>(?:\w+\.)*?)layers\.(?P<layer>\d{1,6})\.(?P<group>self_attn|mlp)\.(?P<kind>\w+_proj)"
    r"\.lora_(?P<side>[AB])(?:\.(?!(?:weight|bias)(?:_\w+)?$)[^.]+)?(?:\.weight)?",
    re.ASCII,
)
BEFORE = {"base_model", "model", "module", "language_model", "text_model", "llm"}
# The trained one of several models that a trainer wraps: TRL's with a value head, and those of reinforcement learning.
BEFORE |= {"pretrained_model", "policy", "actor", "actor_module", "student"}
# Several of a Llama's modules as one, in base models that have them so.
FUSED = {"qkv_proj", "gate_up_proj"}
EMBEDDINGS = re.compile(
    r"(?:(?:base_model|model|module)\.)*(?P<name>embed_tokens|lm_head)(?:\.modules_to_save(?:\.\w+)?)?\.weight"
)
MERGE = (
    "Merge it into its base model (PEFT: `merge_and_unload`, `save_pretrained`) and register the result as a base "
    "model, or train without it."
)
CONVERT = "`adapterhub push FOLDER --from auto` converts it on your machine and says what it changed."
# Names come from strangers and may be as long as a header: RE2's time grows with them, not with their square.
# Mark in a tensor's name -> code, what it is, and the way out. The first that fits counts.
FOREIGN: tuple[tuple[Pattern, str, str, str], ...] = (
    (
        linear(r"\.experts\.|\.mlp\.(?:gate|router|shared_expert_gate)\."),
        "experts",
        "are low-rank matrices of experts or of their router, which no engine here serves",
        MERGE,
    ),
    (
        linear(r"(?:^|\.)(?:visual|vision_\w+|vision|mm_projector|multi_modal_projector|audio_\w+)\."),
        "vision",
        "belong to the part of a model that reads images or sound",
        "The base model here reads text: train without those modules, or remove their tensors.",
    ),
    (
        linear(r"(?:^|\.)(?:v_head|score|classifier|classification_head|qa_outputs)\."),
        "head",
        "are a head for scores or classes, which engines that write text do not compute",
        "Save the adapter without its head.",
    ),
    (
        linear(r"lora_(?:down|up)\b|\.lora\.(?:down|up)\b|^lora_\w+\.alpha$"),
        "kohya",
        "are named as trainers of image models name them (down and up)",
        CONVERT,
    ),
    (
        linear(r"(?:^|\.)layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\b"),
        "meta_names",
        "are named as in Meta's and Mistral's own checkpoints, whose queries and keys have another order of rows",
        "Convert it together with its base model to the layout of Hugging Face, then save it with PEFT.",
    ),
    (
        linear(r"\.linear_(?:qkv|proj|fc[12])\.|\.adapter\.linear_(?:in|out)\b"),
        "megatron",
        "are named as NeMo and Megatron name them, with queries, keys and values in one matrix",
        "Export it to the Hugging Face layout (NeMo: `export_ckpt`, target hf-peft), and send that.",
    ),
    (
        linear(r"(?:^|\.)transformer\.h\.\d+\.(?:attn\.(?:qkv|proj|attn)|mlp\.(?:fc\w*|proj))\b"),
        "litgpt",
        "are named as LitGPT names them",
        "Export it to the Hugging Face layout (`litgpt convert_from_litgpt`), and send that.",
    ),
    (
        linear(r"\.(?:qkv_proj|W_pack|query_key_value)\."),
        "fused",
        "adapt queries, keys and values as one matrix, which this base model has apart",
        "Copy A to q_proj, k_proj and v_proj, and give each its own rows of B.",
    ),
    (
        linear(r"\.gate_up_proj\."),
        "fused",
        "adapt gate and up as one matrix, which this base model has apart",
        "Copy A to gate_proj and up_proj, and give each its own rows of B.",
    ),
    (
        linear(r"(?:^|\.)(?:transformer\.h|gpt_neox|decoder\.block|encoder\.(?:layer|block))\."),
        "other_architecture",
        "belong to a model of another architecture",
        "Send it to an adapter of the base model that it was trained on.",
    ),
    (
        linear(r"lora_magnitude_vector"),
        "dora",
        "are DoRA's magnitudes, which engines do not serve",
        MERGE,
    ),
    (linear(r"\.lora_E\b|\.ranknum\b"), "adalora", "are singular values of AdaLoRA", CONVERT),
    (
        linear(r"(?:lm_head|unembed_tokens|output)\.lora_[ABab]\b"),
        "output_embedding",
        "adapt the output embedding (`lm_head`; tinker calls it `unembed_tokens`), which engines do not serve",
        MERGE,
    ),
    (
        linear(r"lora_embedding_[AB]|embed_tokens\.(?:.*\.)?lora_|wte\."),
        "input_embedding",
        "adapt the input embedding, which engines do not serve",
        MERGE,
    ),
    (
        linear(r"token_adapter|trainable_tokens"),
        "token_rows",
        "are single rows of the embedding that were trained",
        MERGE,
    ),
    (linear(r"\.(?:hada_|lokr_)"), "other_method", "belong to LoHa or LoKr, which no engine serves", MERGE),
    (linear(r"\.ia3_l\b"), "other_method", "are IA3's scaling vectors, which no engine serves", MERGE),
    (linear(r"vera_(?:lambda|A|B)"), "other_method", "belong to VeRA, which no engine serves", MERGE),
    (
        linear(r"(?:^|\.)layers\.\d+\.(?:attn|mlp\.w[123]).*\.lora_[ab]\.weight"),
        "torchtune",
        "are named as torchtune names them",
        CONVERT,
    ),
    (linear(r"\.lora_[ab]$"), "mlx", "are named as MLX names them, and transposed", CONVERT),
    (
        linear(r"\.(?:weight_scale\w*|weight_zero_point|input_scale|SCB|absmax|quant_map|quant_state\w*)\b"),
        "quantised_factors",
        "are scales of quantised matrices, which are other numbers without them",
        "Save the adapter as float32, float16 or bfloat16: only its base model may be quantised.",
    ),
    (linear(r"\.bias$"), "bias", "are biases, which are no low-rank matrices and cannot be served", MERGE),
    (
        linear(
            r"modules_to_save|embed_tokens|lm_head|norm\.weight$|(?:self_attn|mlp)\.(?:[qkvo]|gate|up|down)_proj\.weight$"
        ),
        "whole_modules",
        "are whole modules, which an adapter cannot replace while it is served",
        MERGE,
    ),
)


@dataclass(frozen=True)
class LoraName:
    """The parts of a LoRA tensor's name: full name of its module, kind (`q_proj`), layer number, and side (A or B)."""

    module: str
    kind: str
    layer: int
    side: str

    @property
    def peft(self) -> str:
        """Return the name under which PEFT writes the tensor."""
        return f"{PREFIX}{self.module}.lora_{self.side}.weight"


def lora_name(tensor: str) -> LoraName | None:
    """Parse a tensor's name as PEFT or a wrapper of it (FSDP, torch.compile) writes it; None for any other name."""
    match = LORA.fullmatch(WRAPPERS.sub("", tensor))
    if match is None or not set(filter(None, match["before"].split("."))) <= BEFORE:
        return None
    if match["kind"] in FUSED or GROUPS.get(match["kind"], match["group"]) != match["group"]:
        return None
    layer = int(match["layer"])
    return LoraName(f"model.layers.{layer}.{match['group']}.{match['kind']}", match["kind"], layer, match["side"])


def embedding_of(tensor: str) -> str:
    """Return `embed_tokens` or `lm_head` if the tensor is that whole module, else ""."""
    match = EMBEDDINGS.fullmatch(WRAPPERS.sub("", tensor))
    return match["name"] if match else ""


def foreign_findings(tensors: Iterable[str]) -> Iterator[Finding]:
    """Yield one fault for each kind of tensor that is not a LoRA of a linear module, with names as examples.

    `tensors` are the names of such tensors.
    """
    kinds: dict[int, list[str]] = {}
    for tensor in tensors:
        text = tensor.encode(errors="replace").decode()
        kind = next((place for place, row in enumerate(FOREIGN) if row[0].search(text)), len(FOREIGN))
        kinds.setdefault(kind, []).append(tensor)
    for kind, names in sorted(kinds.items()):
        if kind == len(FOREIGN):
            cause = f"{listed(names)}: no LoRA tensor of this base model."
            yield fault("unknown_tensor", WEIGHTS, cause, "Save the adapter with PEFT's `save_pretrained`.")
        else:
            _, code, meaning, route = FOREIGN[kind]
            yield fault(code, WEIGHTS, f"{len(names):,} tensors ({listed(names, 1)}) {meaning}.", route)
