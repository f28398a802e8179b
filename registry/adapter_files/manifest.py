"""Reading of an adapter's files, checked against the base model before they are stored. No torch, no database."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.core.errors import Invalid
from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.config_schema import config_findings
from registry.adapter_files.findings import Finding, fault, faults_of, refusal
from registry.adapter_files.header_rewrite import rewrite
from registry.adapter_files.inspection import Inspection, inspect
from registry.adapter_files.safetensors_header import Unreadable, read_header
from registry.adapter_files.scales import Scales
from registry.adapter_files.served_config import CONFIG, served_config, write_config
from registry.adapter_files.tensor_names import WEIGHTS

MAX_CONFIG_BYTES = 2**20
YAML = re.compile(rb"(?:#[^\n]*\n)*[A-Za-z_]\w*:\s")

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Manifest:
    """A checked LoRA adapter: ranks by module, parameter count, size of the weights, and configuration to serve.

    `scale` is the effective scale (alpha / r) of all modules; that of the first module if they were allowed to differ.
    """

    ranks: dict[str, int]
    parameters: int
    size_bytes: int
    scale: float
    config: dict[str, Any]
    inspection: Inspection

    @property
    def max_rank(self) -> int:
        """Return the highest rank of any module."""
        return max(self.ranks.values())

    @classmethod
    def read(cls, folder: Path, shapes: Shapes, layers: int, bases: tuple[str, ...] = ()) -> Manifest:
        """Read and check a folder with PEFT's two files. Raises Invalid with every fault.

        `shapes` maps each module kind to (out, in); `layers` is the base model's number of layers. `bases` lists the
        names that the configuration may give for its base model; an empty tuple allows any.
        """
        return cls.of(folder, inspect_folder(folder, BaseFacts(shapes, layers, bases)), layers)

    @classmethod
    def of(cls, folder: Path, inspection: Inspection, layers: int) -> Manifest:
        """Return the manifest of a folder from its inspection. Raises Invalid with every fault.

        `layers` is the base model's number of layers.
        """
        inspection.require()
        config, ranks = inspection.config, inspection.ranks
        module, rank = next(iter(ranks.items()))
        scale = Scales(config).of(module, rank)
        served, size = served_config(config, ranks, layers), (folder / WEIGHTS).stat().st_size
        return cls(ranks, inspection.parameters, size, scale, served, inspection)

    def report(self, *, folded: bool) -> dict[str, Any]:
        """Return the report to store with the version.

        `folded` is True if its scales were folded into B after the upload.
        """
        report = self.inspection.report()
        if folded:
            report["conversions"].append("The modules' scales were folded into B.")
        return report

    def write(self, folder: Path) -> None:
        """Replace the folder's configuration by the one to serve.

        The weights are rewritten as well if tensors are renamed or copies of embeddings are left out.
        """
        if self.inspection.renamed or self.inspection.copies:
            rewrite(folder / WEIGHTS, self.inspection.names)
        write_config(folder, self.config)


def inspect_folder(folder: Path, base: BaseFacts, **options: Any) -> Inspection:
    """Check a folder's two files against a base model and return the inspection; `options` are those of `inspect`.

    Files that cannot be read become faults. Raises Invalid if the folder does not hold exactly these two files.
    """
    refuse_other_files(folder)
    config = parsed(lambda: load_config(folder / CONFIG))
    tensors = parsed(lambda: read_header(folder / WEIGHTS))
    return inspect_files(config, tensors, base, **options)


def inspect_files(config: Any, tensors: Any, base: BaseFacts, **options: Any) -> Inspection:
    """Return the inspection of a configuration and a header; `options` are those of `inspect`.

    Either may be a Finding that says why it could not be read, which becomes a fault of the inspection.
    """
    unread = tuple(part for part in (config, tensors) if isinstance(part, Finding))
    if isinstance(config, Finding):
        return Inspection({}, unread)
    if isinstance(tensors, Finding):
        return Inspection(config, (*config_findings(config), *unread))
    return inspect(config, tensors, base, **options)


def parsed(read: Any) -> Any:
    """Return the result of calling `read`, or the Finding of the Unreadable that it raises."""
    try:
        return read()
    except Unreadable as error:
        return error.finding


def read_parts(folder: Path, shapes: Shapes, layers: int) -> Inspection:
    """Return the inspection of an adapter whose modules may have different scales. Raises Invalid with its faults.

    `shapes` maps each module kind to (out, in); `layers` is the base model's number of layers. The base model that the
    configuration names is not compared.
    """
    inspection = inspect_folder(folder, BaseFacts(shapes, layers), any_scale=True)
    inspection.require()
    return inspection


def refused(message: str, field: str) -> Invalid:
    """Return, without raising it, the error that rejects an adapter because of `field`."""
    return Invalid(message, field=field, code="bad_adapter")


def refuse_other_files(folder: Path) -> None:
    """Check that the folder holds the two files of an adapter and nothing else. Raises Invalid."""
    names = {path.name for path in folder.iterdir()}
    if names != {CONFIG, WEIGHTS}:
        differing = ", ".join(sorted(names ^ {CONFIG, WEIGHTS}))
        raise refused(f"An adapter is exactly {CONFIG} and {WEIGHTS}; missing or not allowed: {differing}.", "files")


def load_config(path: Path) -> dict[str, Any]:
    """Read the JSON object in a configuration file. Raises Unreadable if it is over 1 MB or holds no JSON object."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise Unreadable(
            fault("config_too_large", CONFIG, "The configuration is over 1 MB.", "Send PEFT's file alone.")
        )
    return config_of(path.read_bytes())


def config_of(raw: bytes) -> dict[str, Any]:
    """Parse a configuration. Raises Unreadable if it is not a JSON object."""
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unreadable(other_config(raw)) from None
    if not isinstance(config, dict):
        raise Unreadable(fault("no_object", f"{CONFIG}.peft_type", "The configuration is not a JSON object."))
    return config


def other_config(raw: bytes) -> Finding:
    """Return the fault of a configuration that is not JSON; it says what the file is, by how it begins and ends."""
    start, route = raw.lstrip(), "Send PEFT's file as it was saved."
    meaning = "is not valid JSON"
    if not start:
        meaning = "is empty"
    elif start.startswith(b"version https://git-lfs"):
        meaning, route = "is a pointer of Git LFS, not the file", "Fetch the file with `git lfs pull`."
    elif start.startswith(b"<"):
        meaning = "is a web page"
        route = "The download failed: sign in to the hub and fetch the file again."
    elif YAML.match(start):
        meaning = "is YAML, as trainers are configured by, and not what PEFT saved"
        route = f"Send the {CONFIG} that lies beside the trained weights."
    elif start.startswith(b"{") and not start.rstrip().endswith(b"}"):
        meaning = "ends early"
    return fault("no_json", CONFIG, f"The configuration {meaning}.", route)


def read_config(path: Path) -> dict[str, Any]:
    """Read and check a LoRA configuration from a file. Raises Invalid if it cannot be read or has a fault."""
    config = parsed(lambda: load_config(path))
    if isinstance(config, Finding):
        raise refusal([config])
    if faults := faults_of(list(config_findings(config))):
        raise refusal(faults)
    return dict(config)


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """Return the module's effective scale (alpha / r, or alpha / sqrt(r) for rsLoRA), as PEFT computes it.

    Raises Invalid if `rank`, the file's, differs from the rank that the configuration declares, and ValueError for a
    pattern's key that RE2 cannot run.
    """
    scales = Scales(config)
    if scales.rank_of(module) != rank:
        raise refused(
            f"{module} has rank {rank}, but the configuration says {scales.rank_of(module)}.", f"{CONFIG}.rank_pattern"
        )
    return scales.of(module, rank)
