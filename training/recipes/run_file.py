"""Reading of the JSON files that recipes run from, with a check of every field."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from training.lm.error_reporting import BadInput

Record = dict[str, Any]


@dataclass(frozen=True)
class Hyperparameters:
    """Hyper-parameters of a run: `learning_rate` is the peak, lengths and eval_tokens are in tokens.

    `threads` 0 leaves torch's choice; `packing` 1 fills rows of max_length tokens with whole sequences; `recompute` 1
    saves activation memory at the cost of time; `export_rank` is the rank of the LoRA that other methods are converted
    to, 0 = the run's ranks; `galore_rank` is that of the projected gradients.
    """

    steps: int = 40
    batch_size: int = 4
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    max_length: int = 256
    warmup_steps: int = 4
    seed: int = 0
    checkpoint_steps: int = 20
    eval_tokens: int = 4096
    threads: int = 0
    packing: int = 0
    recompute: int = 0
    export_rank: int = 0
    galore_rank: int = 64

    @property
    def sequences(self) -> int:
        """Number of sequences that one process reads."""
        return self.steps * self.batch_size * self.gradient_accumulation


@dataclass(frozen=True)
class Run:
    """A training run: files, ranks and hyper-parameters.

    Methods that train no LoRA use the ranks for the LoRA that they are converted to. `devices` processes train it, as
    replicas (ddp) or in shards (fsdp).
    """

    base_model: Path
    base_model_name: str
    train: Path
    eval: Path | None
    output: Path
    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    target_modules: list[str]
    hyperparameters: Hyperparameters
    devices: int = 1
    sharding: str = "ddp"
    init: str = "random"
    prompts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Record) -> Run:
        """Build a run from a run file's record. Raises BadInput naming the field."""
        return cls(
            base_model=model_folder(record),
            base_model_name=str(record.get("base_model_name") or record["base_model"]),
            train=path_in(record, "train"),
            eval=path_in(record, "eval") if record.get("eval") else None,
            output=path_in(record, "output"),
            r=int(number(record, "r", whole=True, least=1)),
            lora_alpha=number(record, "lora_alpha"),
            rank_pattern=record.get("rank_pattern") or {},
            alpha_pattern=record.get("alpha_pattern") or {},
            target_modules=names(record, "target_modules"),
            hyperparameters=hyperparameters(record.get("hyperparameters") or {}),
            devices=int(number({"devices": 1, **record}, "devices", whole=True, least=1)),
            sharding=one_of(record, "sharding", ("ddp", "fsdp")),
            init=str(record.get("init") or "random"),
            prompts=record.get("prompts") or {},
        )

    @property
    def sequences(self) -> int:
        """Number of sequences that all processes read together."""
        return self.hyperparameters.sequences * self.devices


def read_record(path: Path) -> Record:
    """Read the JSON object in the file. Raises BadInput."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from None
    if not isinstance(record, dict):
        raise BadInput(f"{path} is no JSON object.")
    return record


def path_in(record: Record, field: str) -> Path:
    """Return the field's path. Raises BadInput."""
    if not isinstance(record.get(field), str):
        raise BadInput(f"{field}: name a path.")
    return Path(record[field])


def model_folder(record: Record) -> Path:
    """Return the folder of the base model. Raises BadInput."""
    folder = path_in(record, "base_model")
    if not (folder / "config.json").is_file():
        raise BadInput(f"base_model: {folder} is no folder of a model.")
    return folder


def one_of(record: Record, field: str, choices: tuple[str, ...]) -> str:
    """Return the chosen word of a field; the first choice when none is given. Raises BadInput."""
    value = record.get(field, choices[0])
    if value not in choices:
        raise BadInput(f"{field}: choose one of {', '.join(choices)}, not {value!r}.")
    return str(value)


def names(record: Record, field: str) -> list[str]:
    """Return the field's module names, sorted. Raises BadInput."""
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise BadInput(f"{field}: give a list of module names.")
    return sorted(value)


def number(record: Record, field: str, *, whole: bool = False, least: float = 0, prefix: str = "") -> float:
    """Return the field's number. Raises BadInput for a wrong type or one that is too small."""
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise BadInput(f"{prefix}{field}: must be a {'whole ' if whole else ''}number, not {value!r}.")
    if value < least or (value == 0 and not whole):
        raise BadInput(f"{prefix}{field}: {value} is too small.")
    return value


def hyperparameters(record: Record) -> Hyperparameters:
    """Check the hyperparameters and add the defaults of the others. Raises BadInput."""
    known = {field.name: field.default for field in fields(Hyperparameters)}
    if unknown := sorted(set(record) - set(known)):
        raise BadInput(f"hyperparameters.{unknown[0]} is unknown; there are {', '.join(known)}.")
    may_be_zero = ("warmup_steps", "seed", "threads", "packing", "recompute", "export_rank")
    return Hyperparameters(
        **{
            field: number(
                {field: record.get(field, default)},
                field,
                whole=isinstance(default, int),
                least=0 if field in may_be_zero or isinstance(default, float) else 1,
                prefix="hyperparameters.",
            )
            for field, default in known.items()
        }  # type: ignore[arg-type]
    )


def write_atomically(path: Path, record: Record) -> None:
    """Write the file under another name and rename it when it is complete."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    part.replace(path)
