"""The JSON files that recipes run from, with a check of every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from training.lm.error_reporting import BadInput

Record = dict[str, Any]
# Strict fields would refuse the text that JSON has for a path.
TextPath = Annotated[Path, Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]
Counting = Annotated[int, Field(ge=0)]
FIXES = {
    "path_type": "name a path",
    "int_type": "must be a whole number, not {input!r}",
    "int_from_float": "must be a whole number, not {input!r}",
    "float_type": "must be a number, not {input!r}",
    "finite_number": "must be a number, not {input!r}",
    "string_type": "must be a text, not {input!r}",
    "list_type": "give a list, not {input!r}",
    "dict_type": "must be an object, not {input!r}",
    "model_type": "must be an object, not {input!r}",
    "missing": "is missing: add it",
    "greater_than": "{input} is too small: it must be above {gt:g}",
    "greater_than_equal": "{input} is too small: it must be at least {ge:g}",
    "less_than": "{input} is too large: it must be below {lt:g}",
    "literal_error": "choose {expected}, not {input!r}",
    "too_short": "give a list with at least one entry",
}


class Checked(BaseModel):
    """Base of the parts of a run file: unknown fields are refused, and so is a text in place of a number."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, record: Record) -> Self:
        """Return the part that a file's record describes. Raises BadInput naming the first field that is wrong."""
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            raise BadInput(refusal(error, cls)) from None


class Hyperparameters(Checked):
    """Hyper-parameters of a run: `learning_rate` is the peak, lengths and eval_tokens are in tokens.

    `threads` 0 leaves torch's choice; `packing` 1 fills rows of max_length tokens with whole sequences; `recompute` 1
    saves activation memory at the cost of time; `export_rank` is the rank of the LoRA that other methods are converted
    to, 0 = the run's ranks; `galore_rank` is that of the projected gradients;
    `as_chat` 1 renders prompts and completions as turns in the model's chat template; `epochs` over 0 reads the data so
    often, instead of `steps`; `eval_steps` over 0 measures the held-out loss so often, and the output is of the best of
    these steps; `patience` over 0 stops after so many measurements without a better one. `loss`: what it counts, of the
    held-out rows, too; `weight_decay` and `scheduler` are the optimiser's, `lora_dropout` is in [0, 1); `beta` is that
    of preference methods, the weights those of KTO's good and bad answers.
    """

    steps: Positive = 40
    batch_size: Positive = 4
    gradient_accumulation: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    max_length: Positive = 256
    warmup_steps: Counting = 0
    scheduler: Literal["linear", "cosine", "constant", "inverse_sqrt"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss: Literal["answers", "last_answer", "with_prompt"] = "answers"
    seed: Counting = 0
    checkpoint_steps: Positive = 20
    eval_tokens: Positive = 4096
    threads: Counting = 0
    packing: Counting = 0
    recompute: Counting = 0
    export_rank: Counting = 0
    galore_rank: Positive = 64
    as_chat: Counting = 0
    epochs: Counting = 0
    eval_steps: Counting = 0
    patience: Counting = 0
    beta: Annotated[float, Field(gt=0)] = 0.1
    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0

    @property
    def sequences(self) -> int:
        """Number of sequences that one process reads."""
        return self.steps * self.batch_size * self.gradient_accumulation


class RunFile(Checked):
    """The fields of every file: the folder of the base model, where the results go, and where progress is told."""

    base_model: TextPath
    output: TextPath
    events: TextPath | None = None

    @classmethod
    def read(cls, record: Record) -> Self:
        """Return the file that the record describes, in which null is as good as left out.

        Raises BadInput naming the field.
        """
        made = super().read({name: value for name, value in record.items() if value is not None})
        if not (made.base_model / "config.json").is_file():
            raise BadInput(f"base_model: {made.base_model} is not a model's folder.")
        return made


class Part(Checked):
    """A dataset of a mixture: its files, and its weight beside the others'."""

    name: str
    train: TextPath
    eval: TextPath | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    place: Counting = 0

    def field(self, name: str) -> str:
        """Return the name that an error gives a file of this part."""
        return f"mixture.{self.place - 1}.{name}" if self.place else name


class Run(RunFile):
    """A training run: files, ranks and hyper-parameters. `mixture`: datasets beside `train`, whose weight is 1.

    Methods that train no LoRA use the ranks for the LoRA that they are converted to. `devices` processes train it, as
    replicas (ddp) or in shards (fsdp).
    """

    base_model_name: str = Field(default_factory=lambda fields: str(fields["base_model"]))
    train: TextPath
    eval: TextPath | None = None
    r: Positive
    lora_alpha: Annotated[float, Field(gt=0)]
    rank_pattern: dict[str, Counting] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: Annotated[list[str], Field(min_length=1), AfterValidator(sorted)]
    hyperparameters: Hyperparameters = Hyperparameters()
    devices: Positive = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    init: str = "random"
    data_name: str = "train"
    mixture: list[Part] = []
    prompts: dict[str, str] = {}

    @property
    def parts(self) -> list[Part]:
        """Return all datasets of the run, the first with the weight 1."""
        first = Part(name=self.data_name, train=self.train, eval=self.eval)
        return [first, *(part.model_copy(update={"place": place}) for place, part in enumerate(self.mixture, start=1))]

    @property
    def sequences(self) -> int:
        """Number of sequences that all processes read together."""
        return self.hyperparameters.sequences * self.devices


def refusal(errors: ValidationError, kind: type[BaseModel]) -> str:
    """Return a sentence on the first wrong field and what it takes instead."""
    error = errors.errors(include_url=False)[0]
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{field} is unknown; known are {', '.join(fields_around(kind, error['loc']))}."
    if error["type"] not in FIXES:
        return f"{field}: {error['msg']}."
    return f"{field}: {FIXES[error['type']].format(input=error['input'], **error.get('ctx', {}))}."


def fields_around(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the names of all fields of the part of the file that the place is in."""
    part: Any = kind
    for name in place[:-1]:
        part = part.model_fields[name].annotation
    return list(part.model_fields)


def read_record(path: Path) -> Record:
    """Read the JSON object in the file. Raises BadInput."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from None
    if not isinstance(record, dict):
        raise BadInput(f"{path} is not a JSON object.")
    return record


def events_path(record: Record) -> Path:
    """Return the path of the file for progress and errors. Raises BadInput without one."""
    if not isinstance(record.get("events"), str):
        raise BadInput("events: name a path.")
    return Path(record["events"])


def write_atomically(path: Path, record: Record) -> None:
    """Write the record as JSON under another name and rename it when it is complete. Raises ValueError for NaN."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    part.replace(path)
