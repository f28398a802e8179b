"""The base model that a configuration names, as trainers write it: hub ids, folders, caches, quantised copies. Pure.

A name is compared with the names of the adapter's base model. The hub's owner and the folder before it are ignored,
because copies of the same weights lie in many places; any difference in the name itself counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from registry.adapter_files.findings import Finding, fault, notice, printable
from registry.adapter_files.served_config import CONFIG

LONGEST_NAME = 500
# A trainer that writes "None" had no name.
UNNAMED = ("", "None", "null")
FIELD = f"{CONFIG}.base_model_name_or_path"
# The Hugging Face cache: .../models--OWNER--NAME/snapshots/COMMIT
CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)(?:/snapshots/(?P<commit>[0-9a-f]{7,40}))?/?$")
# Endings that name a copy with fewer bits, of which an adapter can be trained; several may follow one another.
QUANTISED = re.compile(
    r"[-_.](?:unsloth|dynamic|quantized|bnb|nf4|fp4|[2-8]-?bits?|int[2-8](?:wo)?|gptq(?:model)?|awq|hqq|aqlm|eetq|fp8|"
    r"w\da\d{1,2}|8da4w|g(?:32|64|128)|(?:32|64|128)g|gguf|mlx|nvfp4|mxfp[48]|marlin|auto-?round|exl[23]|"
    r"\d(?:\.\d+)?bpw|i?q\d(?:_[0-9a-z]+)*|torchao|qat|ptq|dwq|spinquant)$",
    re.IGNORECASE,
)
# Endings that name a copy of the same numbers, or of those in 16 bits.
SAME = re.compile(r"[-_.](?:bf16|fp16|f16|16-?bit|hf|safetensors)$", re.IGNORECASE)


@dataclass(frozen=True)
class BaseFacts:
    """The facts about an adapter's base model that the check uses.

    `shapes` maps a kind of module (`q_proj`) to (out, in). `names` are the accepted names; an empty tuple accepts any.
    `vocabulary` and `hidden` are the embedding's rows and columns, 0 if not known. `highest_rank` is the highest LoRA
    rank that the base model's clusters serve; 0 if there is no cluster.
    """

    shapes: dict[str, tuple[int, int]]
    layers: int
    names: tuple[str, ...] = ()
    revision: str = ""
    vocabulary: int = 0
    hidden: int = 0
    highest_rank: int = 0


@dataclass(frozen=True)
class NamedBase:
    """A base model as a configuration names it.

    `owner` is the hub's owner or the folder before the name, "" without one. `name` lacks endings that mark a quantised
    copy (`-bnb-4bit`), which set `is_quantised`, or a copy of the same numbers (`-bf16`). `commit` is that of a path in
    the hub's cache or what follows an `@`, else "".
    """

    owner: str
    name: str
    is_quantised: bool
    commit: str = ""

    @classmethod
    def read(cls, text: str) -> NamedBase:
        """Parse the text of `base_model_name_or_path`: a hub id, a path, or a place in the hub's cache.

        Endings of the name that mark a quantised or converted copy are removed.
        """
        if cached := CACHED.search(text.replace("\\", "/")):
            owner, name, commit = cached["owner"], cached["name"], cached["commit"] or ""
        else:
            path = text.replace("\\", "/").rstrip("/")
            owner, _, last_part = path.rpartition("/")
            name, _, commit = last_part.partition("@")
        plain, is_quantised = name, False
        while marked := QUANTISED.search(plain) or SAME.search(plain):
            is_quantised = is_quantised or bool(QUANTISED.search(plain))
            plain = plain[: marked.start()]
        return cls(owner, plain or name, is_quantised, commit)


def base_findings(config: dict[str, Any], base: BaseFacts, confirmation: str = "") -> Iterator[Finding]:
    """Yield a fault if the configuration names another base model, and notices on its revision and quantisation.

    A configuration that names none yields only a notice. A person's reason in `confirmation` makes the fault a notice.
    Nothing is yielded if `base.names` is empty.
    """
    if not base.names:
        return
    text = config.get("base_model_name_or_path")
    text = text[:LONGEST_NAME] if isinstance(text, str) else ""
    if text in UNNAMED:
        yield notice("base_unnamed", FIELD, "The configuration names no base model: only the shapes could be compared.")
        return
    named = NamedBase.read(text)
    if not fits(text, named, base.names):
        yield other_base(text, base, confirmation)
    elif named.is_quantised:
        yield notice(
            "base_quantised",
            FIELD,
            f"It was trained on {printable(text)!r}, a copy of {base.names[0]!r} with fewer bits.",
        )
    yield from revision_findings(config, named, base)


def fits(text: str, named: NamedBase, names: tuple[str, ...]) -> bool:
    """Return True if the text, its last path part, or `named.name` is one of `names`.

    Upper and lower case are the same.
    """
    known = {name.casefold() for name in names}
    return bool({text.casefold(), named.name.casefold()} & known) or last(text) in known


def last(text: str) -> str:
    """Return the last part of a path in lower case."""
    return text.rstrip("/").rsplit("/", 1)[-1].casefold()


def other_base(text: str, base: BaseFacts, confirmation: str) -> Finding:
    """Return the finding on an adapter that names another base model: a notice if a person confirmed the base."""
    cause = f"The configuration names the base model {printable(text)[:100]!r}; this adapter's is {base.names[0]!r}."
    if confirmation:
        return notice("base_confirmed", FIELD, cause, f"A person confirmed that it fits: {confirmation}")
    route = (
        "Send it to an adapter of that base model; or, if both are the same weights, send `confirm_base` with the "
        "reason, which the audit trail keeps."
    )
    return fault("other_base", FIELD, cause, route)


def revision_findings(config: dict[str, Any], named: NamedBase, base: BaseFacts) -> Iterator[Finding]:
    """Yield a notice if the configuration names a revision other than `main` and the base model's registered one.

    The revision is that of the configuration, else the commit in the base model's name; without either there is none.
    """
    revision = str(config.get("revision") or named.commit or "")
    if revision and revision not in (base.revision, "main"):
        served = f"revision {base.revision!r}" if base.revision else "an unnamed revision"
        yield notice(
            "base_revision",
            f"{CONFIG}.revision",
            f"It was trained on revision {printable(revision)[:60]!r}; the registered base model is {served}.",
        )
