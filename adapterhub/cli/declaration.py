"""The declarative file `adapterhub.yaml`: the adapter and rollout that should exist, and how versions are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.core.yaml_loader import loaded
from serving_client.engine_hosts import normalised

# Methods whose data hold preferences, which no rank analysis and no evaluation reads.
PREFERENCE = ("dpo", "kto", "orpo")


def as_text(value: Any) -> Any:
    """Return a number as the text that the file has for it, for a field that holds a text; anything else as it is.

    Raises ValueError for true and false.
    """
    if isinstance(value, bool):
        raise ValueError(f"Input should be a text: write {str(value).lower()} in quotes")
    return str(value) if isinstance(value, int | float) else value


def as_whole(value: Any) -> Any:
    """Return a number such as 1e3 or 60.0 as the integer that it is; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def as_flag(value: Any) -> Any:
    """Return True for the words yes and on, False for no and off, as YAML 1.1 reads them; anything else as it is."""
    return {"yes": True, "on": True, "no": False, "off": False}.get(value, value) if isinstance(value, str) else value


def as_setting(value: Any) -> Any:
    """Return a hyper-parameter as a plain value. Raises ValueError unless it is a number, true, false or a word."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if isinstance(value, bool) else kind(value)
    raise ValueError("Input should be a number, true, false or a word")


def file_or_number(value: Any) -> Any:
    """Return the number of a dataset as text; anything else as it is.

    Raises ValueError for a number below 1 or with a fraction, and for true and false.
    """
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("the number of a dataset is a whole number: write a file's name in quotes")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return as_text(value)
    if value < 1:
        raise ValueError("the number of a dataset is 1 or more")
    return str(int(value))


Text = Annotated[str, BeforeValidator(as_text)]
Slug = Annotated[Text, Field(pattern=r"^[-a-zA-Z0-9_]{1,50}$")]
Flag = Annotated[bool, BeforeValidator(as_flag)]
Percent = Annotated[float, Field(ge=0, le=100)]
Whole = Annotated[int, BeforeValidator(as_whole)]
Count = Annotated[Whole, Field(ge=0)]


class Strict(BaseModel):
    """A strict Pydantic model: unknown names are errors, and text is not converted to numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Adapter(Strict):
    """The adapter that should exist."""

    slug: Slug
    description: Text = ""
    tags: list[Text] = []


class Budget(Strict):
    """The budget of a rank plan: exactly one of uniform rank, parameters and bytes."""

    uniform_rank: Annotated[Whole, Field(ge=1, le=512)] | None = None
    parameters: Annotated[Whole, Field(ge=1)] | None = None
    bytes: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def is_one(self) -> Self:
        """Return the budget. Raises ValueError unless it is given in exactly one unit."""
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("name exactly one of uniform_rank, parameters, bytes")
        return self


class Mixed(Strict):
    """A dataset, by its number, that is mixed into the data with this weight; the data's own weight is 1."""

    dataset: Annotated[Whole, Field(ge=1)]
    weight: Annotated[float, Field(gt=0, le=1000)]


class TaskGate(Strict):
    """A task of lm-eval that the operator offers, and the least score of each metric that is named."""

    task: Annotated[Text, Field(min_length=1, max_length=100)]
    at_least: Annotated[dict[str, float], Field(min_length=1)]


class Gates(Strict):
    """The gates that a version passes before it serves users.

    `no_worse` refuses a version that is measured to be worse than what the alias serves, `tasks` one that scores less
    than named, `loss_below` one whose held-out loss is not below it. `quorum` is the number of signatures that a
    promotion needs.
    """

    no_worse: Flag = True
    tasks: list[TaskGate] = []
    loss_below: float | None = None
    quorum: Annotated[Whole, Field(ge=0, le=10)] | None = None


class Step(Strict):
    """A step of the rollout: the candidate's share in percent, and what the next step waits for.

    It waits for `hold_s` seconds, `min_samples` answers and, with `approval`, a person's consent. `shadow` is the
    percentage of the stable version's requests that the candidate answers too, unseen.
    """

    weight: Percent
    hold_s: Count = 0
    min_samples: Count = 0
    approval: Flag = False
    shadow: Percent = 0


class Guardrail(Strict):
    """A metric that the rollout watches, with its margin.

    A bad verdict rolls back if `kind` is `guardrail`, pauses if `signal`, and only delays the promotion if `goal`.
    `level` is the quantile of a latency.
    """

    metric: Text
    margin: Annotated[float, Field(ge=0)]
    kind: Literal["guardrail", "signal", "goal"] = "guardrail"
    level: float | None = None


class Rollout(Strict):
    """The rollout that moves an alias to the version. `cluster` is where an alias that does not exist yet is served."""

    alias: Slug
    steps: Annotated[list[Step], Field(min_length=1)]
    guardrails: list[Guardrail] = []
    cluster: Slug | None = None
    reason: Annotated[Text, Field(min_length=1, max_length=2000)] = "adapterhub.yaml"


class Cluster(Strict):
    """The cluster that should exist, and the addresses of all its replicas; those that are not named are deleted.

    `replicas` None leaves the replicas as they are. With `discovery` the cluster's source names them.
    """

    slug: Slug
    engine: Literal["embedded", "vllm"] = "embedded"
    max_lora_rank: Annotated[Whole, Field(ge=1, le=512)] = 64
    max_loras: Annotated[Whole, Field(ge=1)] = 8
    routing: Literal["least_loaded", "prefix_affinity"] = "least_loaded"
    discovery: Annotated[Text, Field(max_length=300)] = ""
    replicas: list[Annotated[str, AfterValidator(normalised)]] | None = None
    reason: Annotated[Text, Field(min_length=1, max_length=2000)] = "adapterhub.yaml"


class Limits(Strict):
    """Limits of the project at the routers; null removes a limit, and one that is not named stays as it is."""

    requests_per_s: Annotated[float, Field(ge=0.001, le=1e6)] | None = None
    tokens_per_min: Annotated[Whole, Field(ge=1, le=2**31 - 1)] | None = None
    reason: Annotated[Text, Field(min_length=1, max_length=2000)] = "adapterhub.yaml"


class Declaration(Strict):
    """The whole file of `adapterhub apply`: the adapter, its data, the training, the gates and the rollout."""

    adapter: Adapter
    base: Slug
    data: Annotated[str, Field(min_length=1), BeforeValidator(file_or_number)]
    project: Slug | None = None
    mixture: list[Mixed] = []
    validation_dataset: Annotated[Whole, Field(ge=1)] | None = None
    method: Literal["lora", "qlora", "dora", "adalora", "galore", "full", "dpo", "kto", "orpo"] = "lora"
    budget: Budget | None = None
    hyperparameters: dict[str, Annotated[Any, AfterValidator(as_setting)]] = {}
    gates: Gates | None = None
    limits: Limits | None = None
    cluster: Cluster | None = None
    rollout: Rollout | None = None

    @property
    def is_measured(self) -> bool:
        """Return True if a new version is evaluated on the held-out rows of the data."""
        return self.gates is not None and self.method not in PREFERENCE

    @model_validator(mode="after")
    def needs_no_answers(self) -> Self:
        """Return the declaration.

        Raises ValueError if a preference method has a budget or a gate for which answers of held-out rows would be
        measured.
        """
        if self.method not in PREFERENCE:
            return self
        if self.budget:
            raise ValueError(f"budget: a rank analysis reads answers, and {self.method} learns from preferences")
        if self.gates and (self.gates.no_worse or self.gates.loss_below is not None):
            raise ValueError(
                f"gates: held-out answers are measured, and {self.method} learns from preferences: set no_worse to "
                "false and leave loss_below out"
            )
        return self


def read(path: Path) -> Declaration:
    """Read the file. Raises Ended naming each field that is wrong."""
    try:
        return Declaration.model_validate(loaded(path.read_text()))
    except FileNotFoundError:
        message = f"There is no {path} here: write one (docs/ci/adapterhub.yaml is an example), or name it with --file."
        raise Ended(message, Exit.USAGE) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise Ended(f"{path} is not valid YAML: {error}", Exit.USAGE) from None
    except ValidationError as error:
        faults = [{"field": place(fault["loc"]), "message": message_of(fault)} for fault in error.errors()]
        raise refusal(path, faults, Exit.USAGE) from None


def message_of(fault: Mapping[str, Any]) -> str:
    """Return what is wrong with a field and what to write in its place."""
    match fault["type"]:
        case "extra_forbidden":
            return "There is no such field: correct its name, or remove it."
        case "model_type":
            return "Write fields and their values here, as `name: value`."
        case _:
            return str(fault["msg"])


def refusal(path: Path, faults: Sequence[Mapping[str, Any]], code: Exit) -> Ended:
    """Return an Ended that names each fault of the file by its field; `steps.0` becomes `steps[0]`."""
    placed = [{**fault, "field": re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", fault["field"])} for fault in faults]
    lines = [f"{path}: {fault['field']}: {fault['message']}" for fault in placed]
    return Ended("\n".join(lines), code, faults=placed)


def place(parts: tuple[Any, ...]) -> str:
    """Return the path of a field, such as `rollout.steps[0].weight`."""
    named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return named.lstrip(".") or "the file"
