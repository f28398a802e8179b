"""The check of an adapter before anything is stored: every fault and every notice at once. Pure.

It needs the configuration and the header of the weights, not the numbers: a client sends both before it uploads.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.core.counts import counted
from registry.adapter_files.base_identity import BaseFacts, base_findings
from registry.adapter_files.config_schema import are_valid, config_findings, method_fault
from registry.adapter_files.findings import LONGEST, Finding, fault, faults_of, listed, notice, printable, refusal
from registry.adapter_files.peft_targets import DEFAULT, Undecided, adapted_modules
from registry.adapter_files.safetensors_header import Tensor
from registry.adapter_files.scales import scale_findings
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import (
    CONVERT,
    GROUPS,
    WEIGHTS,
    LoraName,
    embedding_of,
    foreign_findings,
    lora_name,
)

NATIVE = ("F32", "F16", "BF16")
# Characters of a configuration that are kept with its version.
MOST_KEPT = 50_000
TARGET_FIELDS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
SCALE_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
CONVERTIBLE = ("F64", "F8_E4M3", "F8_E5M2")
Config = dict[str, Any]


@dataclass(frozen=True)
class Inspection:
    """The result of the check of an adapter's configuration and header.

    `names` maps each LoRA tensor of the file to PEFT's name for it. `copies` maps tensors that may be unchanged copies
    of the base model's embeddings to `embed_tokens` or `lm_head`; only their numbers, which are not read here, can
    decide. `ranks` maps modules whose A and B fit the base model to their rank. `parameters` counts the LoRA tensors'
    numbers. `expected` is the number of modules that the configuration adapts, None if it cannot be known.
    """

    config: Config
    findings: tuple[Finding, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    expected: int | None = None

    @property
    def renamed(self) -> bool:
        """Return True if a LoRA tensor of the file has another name than PEFT's."""
        return any(old != new for old, new in self.names.items())

    @property
    def max_rank(self) -> int:
        """Return the highest rank of a module; 0 if no module fits."""
        return max(self.ranks.values(), default=0)

    @property
    def is_accepted(self) -> bool:
        """Return True if no fault was found."""
        return not faults_of(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as the JSON that the REST check answers, with at most LONGEST findings."""
        return {
            "accepted": self.is_accepted,
            "findings": [finding.as_dict() for finding in self.findings[:LONGEST]],
            "modules_found": len(self.ranks),
            "modules_expected": self.expected,
            "max_rank": self.max_rank,
            "parameters": self.parameters,
        }

    def report(self) -> dict[str, Any]:
        """Return the report that is stored with the version: what was sent, and what the check found and changed.

        The configuration is stored as text, because JSON in Postgres cannot hold everything that JSON in a file can; at
        most MOST_KEPT characters of it are stored.
        """
        sent = {
            name: printable(str(self.config[name]))
            for name in ("base_model_name_or_path", "revision", "peft_version")
            if self.config.get(name)
        }
        whole = json.dumps(self.config, sort_keys=True)
        return {
            "sent": {**sent, "configuration": whole if len(whole) <= MOST_KEPT else whole[:MOST_KEPT] + " ..."},
            "modules": {"expected": self.expected, "found": len(self.ranks)},
            "findings": [finding.as_dict() for finding in self.findings[:LONGEST]],
            "conversions": [f"{len(self.names):,} tensors were renamed."] * self.renamed
            + [f"{name} was left out: a copy of the base model's." for name in map(printable, sorted(self.copies))],
        }

    def require(self) -> None:
        """Raise Invalid with the inspection's faults; do nothing if there is none."""
        if faults := faults_of(self.findings):
            raise refusal(faults)


def inspect(
    config: Config,
    tensors: dict[str, Tensor],
    base: BaseFacts,
    *,
    is_foreign: bool = True,
    any_scale: bool = False,
    confirmation: str = "",
) -> Inspection:
    """Check a configuration and the header of its weights against a base model, and return all findings.

    Faults are returned, not raised. With `is_foreign` the modules of the file are also compared with those that the
    configuration targets. With `any_scale` modules may have different effective scales. `confirmation` is a person's
    reason why the adapter fits although it names another base model. For a method other than LoRA only the base model
    and the number formats are checked.
    """
    if other_method := method_fault(config):
        return Inspection(config, (other_method, *base_findings(config, base, confirmation), *dtype_findings(tensors)))
    named = {name: lora_name(name) for name in tensors}
    loras = {name: lora for name, lora in named.items() if lora}
    copies = {name: embedding_of(name) for name in tensors if not named[name] and embedding_of(name)}
    others = [name for name in tensors if not named[name] and name not in copies]
    seen = Inspection(
        config,
        (
            *config_findings(config),
            *base_findings(config, base, confirmation),
            *dtype_findings(tensors),
            *foreign_findings(others),
            *copy_findings(copies, tensors, base),
            *name_findings(loras),
        ),
        names={name: lora.peft for name, lora in loras.items()},
        copies=copies,
        parameters=sum(math.prod(tensors[name].shape) for name in loras),
    )
    ranks, misfits = ranks_of(loras, tensors, base)
    findings = [*seen.findings, *misfits]
    expected: int | None = None
    if not loras and not others:
        findings.append(no_tensors(tensors))
    if is_foreign and are_valid(config, TARGET_FIELDS):
        expected, contradictions = modules_against_configuration(config, ranks, base)
        findings += contradictions
    if ranks and not misfits and are_valid(config, SCALE_FIELDS):
        findings += scale_findings(config, ranks, any_scale=any_scale)
    findings += rank_findings(ranks, base)
    return replace(seen, findings=tuple(findings), ranks=ranks, expected=expected)


def rank_findings(ranks: dict[str, int], base: BaseFacts) -> Iterator[Finding]:
    """Yield a notice if the highest rank exceeds what the clusters of the base model serve."""
    highest = max(ranks.values(), default=0)
    if base.highest_rank and highest > base.highest_rank:
        cause = f"Its highest rank is {highest}; the clusters of its base model serve at most {base.highest_rank}."
        route = "It is kept and not served: compress it to that rank, or raise a cluster's max_lora_rank."
        yield notice("rank_over_clusters", WEIGHTS, cause, route)


def no_tensors(tensors: dict[str, Tensor]) -> Finding:
    """Return the fault of a file without LoRA tensors; `tensors` are all tensors of the file."""
    return fault(
        "no_tensors",
        WEIGHTS,
        "The file contains no LoRA tensors." if not tensors else "The file contains embeddings, but no LoRA tensors.",
        "A sharded training (DeepSpeed ZeRO-3, FSDP) saves such files: gather the weights, then save again.",
    )


def dtype_findings(tensors: dict[str, Tensor]) -> Iterator[Finding]:
    """Yield a fault for each number format in the file other than F32, F16 and BF16."""
    for dtype, count in sorted(Counter(tensor.dtype for tensor in tensors.values()).items()):
        if dtype not in NATIVE:
            route = CONVERT if dtype in CONVERTIBLE else "Save it as float32, float16 or bfloat16."
            cause = f"{count:,} tensors are of type {dtype}; an adapter's are {', '.join(NATIVE)}."
            yield fault("dtype", WEIGHTS, cause, route)


def copy_findings(copies: dict[str, str], tensors: dict[str, Tensor], base: BaseFacts) -> Iterator[Finding]:
    """Yield a fault if an embedding has another shape than the base model's, else a notice that it will be compared.

    Nothing is yielded if `copies` is empty.
    """
    if not copies:
        return
    resized = [name for name in copies if tensors[name].shape != (base.vocabulary, base.hidden)]
    if resized and base.vocabulary:
        rows = tensors[resized[0]].shape[0] if tensors[resized[0]].shape else 0
        cause = f"{listed(resized, 1)} has {counted(rows, 'row')}; the base model's vocabulary has {base.vocabulary:,}."
        route = "A resized vocabulary cannot be served beside its base. Merge the adapter into the resized model and "
        yield fault("resized_vocabulary", WEIGHTS, cause, f"{route}register the result as a base model.")
    else:
        cause = f"The file holds {listed(sorted(copies))} whole. Unchanged copies of the base model are left out."
        yield notice("embedding_copies", WEIGHTS, cause, "A changed copy is refused once the weights are uploaded.")


def name_findings(loras: dict[str, LoraName]) -> Iterator[Finding]:
    """Yield a notice if tensors are renamed, and a fault if several would get the same name."""
    renamed = [name for name, lora in loras.items() if name != lora.peft]
    if renamed:
        cause = f"{len(renamed):,} tensors get the names that PEFT writes: {listed(renamed, 1)}"
        yield notice("renamed", WEIGHTS, f"{cause} becomes {loras[renamed[0]].peft}.")
    doubled = [name for name, count in Counter(lora.peft for lora in loras.values()).items() if count > 1]
    if doubled:
        cause = f"Several tensors are {listed(doubled, 1)}: the file has more than one adapter."
        yield fault("several_adapters", WEIGHTS, cause, "Save each adapter into a folder of its own.")


def ranks_of(
    loras: dict[str, LoraName], tensors: dict[str, Tensor], base: BaseFacts
) -> tuple[dict[str, int], list[Finding]]:
    """Return the rank of each module whose A and B fit the base model, and the faults of the other LoRA tensors.

    Faults are matrices that do not fit or are missing, empty tensors, and tensors for modules that the base model
    lacks.
    """
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    unknown = []
    for name, lora in loras.items():
        if lora.kind not in base.shapes or lora.layer >= base.layers:
            unknown.append(name)
        else:
            sides.setdefault(lora.module, {})[lora.side] = tensors[name].shape
    ranks, wrong, empty = {}, [], []
    for module, pair in sorted(sides.items()):
        a, b = pair.get("A"), pair.get("B")
        out, width = base.shapes[module.rsplit(".", 1)[1]]
        if a and b and len(a) == len(b) == 2 and a[0] >= 1 and (a, b) == ((a[0], width), (out, a[0])):
            ranks[module] = a[0]
        elif pair and all(0 in shape for shape in pair.values()):
            empty.append(module)
        else:
            wrong.append(f"{module}: {misfit(a, b, out, width)}")
    return ranks, [*shape_faults(wrong, empty), *unknown_modules(unknown, base)]


def misfit(a: tuple[int, ...] | None, b: tuple[int, ...] | None, out: int, width: int) -> str:
    """Return a phrase that says why A and B, given by their shapes, do not fit a layer (out, width).

    None means that the matrix is missing. The caller has found that they do not fit.
    """
    if a is None or b is None:
        return f"it has {'B and no A' if a is None else 'A and no B'}"
    text = f"A {list(a)} and B {list(b)} do not fit a layer of shape {[out, width]}"
    if len(a) == len(b) == 2 and a[1] == b[0] and (a[0], b[1]) == (width, out):
        return f"{text}: the matrices are transposed"
    if len(a) == len(b) == 2 and a[1] == b[0] and (a[0], b[1]) == (out, width):
        return f"{text}: A and B are exchanged"
    return text


def shape_faults(wrong: list[str], empty: list[str]) -> Iterator[Finding]:
    """Yield a fault for modules whose matrices do not fit, and one for modules with empty tensors.

    `wrong` holds a sentence for each of the former, `empty` the names of the latter.
    """
    if empty:
        modules = f"{counted(len(empty), 'module')} are empty ({listed(empty, 1)})"
        cause = f"The tensors of {modules}: the training was sharded by ZeRO-3."
        route = "Gather the weights before saving: `zero3_save_16bit_model: true` (DeepSpeed: "
        yield fault("empty_tensors", WEIGHTS, cause, f"{route}`stage3_gather_16bit_weights_on_model_save`).")
    if wrong:
        rest = f" {counted(len(wrong) - 1, 'more module does', 'more modules do')} not fit." if len(wrong) > 1 else ""
        yield fault("bad_shape", WEIGHTS, f"{wrong[0]}.{rest}", "Was it trained on another base model?")


def unknown_modules(unknown: list[str], base: BaseFacts) -> Iterator[Finding]:
    """Yield a fault if there are LoRA tensors, `unknown`, for modules that the base model lacks."""
    if unknown:
        cause = f"{listed(unknown)}: no LoRA tensor of this base model, which has {base.layers} layers."
        yield fault("unknown_module", WEIGHTS, cause, "Send it to an adapter of the base model that it was trained on.")


def linear_modules(base: BaseFacts) -> list[str]:
    """Return the full names of the base model's linear modules."""
    return [
        f"model.layers.{layer}.{GROUPS[kind]}.{kind}"
        for layer in range(base.layers)
        for kind in base.shapes
        if kind in GROUPS
    ]


def modules_against_configuration(
    config: Config, ranks: dict[str, int], base: BaseFacts
) -> tuple[int | None, list[Finding]]:
    """Compare the modules in the file with those that the configuration targets.

    Returns the number of modules that the configuration adapts, None if it cannot be known, and the findings: a fault
    for modules with tensors that are not targeted and for targeted ones without tensors, and notices. `ranks` holds the
    modules of the file.
    """
    target = f"{CONFIG}.target_modules"
    try:
        wanted = adapted_modules(config, linear_modules(base))
    except (Undecided, TypeError) as reason:
        cause = f"The pattern of modules cannot be evaluated here ({reason}): the file's tensors decide."
        return None, [notice("targets_undecided", target, cause)]
    findings = []
    if config.get("target_modules") is None:
        cause = f"No target_modules are named: PEFT then adapts {' and '.join(DEFAULT)} of this base model."
        findings.append(notice("targets_absent", target, cause))
    if isinstance(config.get("target_modules"), str) and wanted:
        findings.append(
            notice("targets_pattern", target, "A pattern names the modules; they are served by their names.")
        )
    if surplus := sorted(set(ranks) - wanted):
        modules = counted(len(surplus), "module has", "modules have")
        cause = f"{modules} tensors, but PEFT would leave them out: {listed(surplus)}."
        route = "Name them in target_modules, or remove their tensors: served, they would answer unlike PEFT."
        findings.append(fault("not_targeted", target, cause, route))
    missing = sorted(wanted - set(ranks))
    if missing and ranks:
        lacking = counted(len(missing), "has", "have")
        cause = f"Of {counted(len(wanted), 'module')} that the configuration adapts, {lacking} no tensors: "
        route = "Save the whole adapter; if those modules were never trained, name the trained ones in target_modules."
        cause += f"{listed(missing)}. One part of a pipeline or one shard is saved so."
        findings.append(fault("incomplete", WEIGHTS, cause, route))
    return len(wanted), findings
