"""The ModelPack format: the manifest and configuration of a version, and the adapter's files in anybody's. Pure.

https://github.com/modelpack/model-spec says what its media types and annotations mean.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

Json = dict[str, Any]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1"
DOC = "application/vnd.cncf.model.doc.v1"
KINDS = {"adapter_model.safetensors": WEIGHT, "adapter_config.json": WEIGHT_CONFIG, "README.md": DOC}
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"
# The files that a pull fetches: an adapter in any layout that is converted.
TAKEN = ("adapter_config*.json", "adapter_model*", "adapters.safetensors", "*.safetensors")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MOST_LAYERS, MOST_BYTES, MOST_CONFIG_BYTES = 1000, 16 * 2**30, 2**20
LONGEST_TEXT = 500


class NoModelPack(ValueError):
    """Raised for an artifact that is no ModelPack with an adapter; the message says what it has and what to do."""


@dataclass(frozen=True)
class Blob:
    """A file of an artifact: its path, the digest `sha256:...` and the bytes of its blob, and its media type."""

    path: str
    digest: str
    size: int
    media_type: str

    def descriptor(self) -> Json:
        """Return the layer of the manifest."""
        return {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
            "annotations": {TITLE: self.path, FILEPATH: self.path},
        }

    @property
    def is_archive(self) -> bool:
        """True for a tar, plain or by gzip, whose files lie inside."""
        return self.media_type.endswith((".tar", ".tar+gzip"))


def configuration(version: Json, base_model: str, files: list[Blob], precision: str) -> Json:
    """Return the configuration of a version's artifact: what it is, and the digests of its uncompressed layers."""
    return {
        "descriptor": {
            "createdAt": version["created_at"],
            "name": version["adapter"],
            "version": f"v{version['number']}",
            "revision": version["digest"],
            "title": version["served_name"],
            "description": f"LoRA adapter of {base_model}, sha256 {version['base_digest']}.",
        },
        "config": {
            "architecture": "lora",
            "format": "safetensors",
            "paramSize": str(version["parameters"]),
            "precision": precision,
        },
        "modelfs": {"type": "layers", "diffIds": [file.digest for file in files]},
    }


def manifest(version: Json, base_model: str, config: Json, files: list[Blob]) -> Json:
    """Return the manifest; `config` is the descriptor of the configuration's blob."""
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": config,
        "layers": [file.descriptor() for file in files],
        "annotations": {
            "org.opencontainers.image.created": version["created_at"],
            TITLE: version["served_name"],
            "io.adapterhub.digest": version["digest"],
            "io.adapterhub.base-model": base_model,
            "io.adapterhub.base-digest": version["base_digest"],
        },
    }


def read_manifest(text: bytes) -> tuple[Json, list[Blob], int]:
    """Return the configuration's descriptor, the layers that hold an adapter's files, and the number of all layers.

    Raises NoModelPack for another artifact, for layers that are too large or packed in a way that is not read, and for
    a path that leads out of its folder.
    """
    content = parsed(text, "manifest")
    config, layers = content.get("config"), content.get("layers")
    if not isinstance(config, dict) or config.get("mediaType") != CONFIG:
        kind = content.get("artifactType") or content.get("mediaType") or "something else"
        raise NoModelPack(f"This is no ModelPack but {str(kind)[:100]}: pull another one.")
    if not isinstance(layers, list) or not layers or len(layers) > MOST_LAYERS:
        raise NoModelPack(f"A ModelPack has 1 to {MOST_LAYERS} layers.")
    descriptor(config, "config")
    if config["size"] > MOST_CONFIG_BYTES:
        raise NoModelPack("The configuration of the ModelPack is over 1 MB.")
    blobs = [blob for layer in layers if (blob := wanted(layer))]
    if sum(blob.size for blob in blobs) > MOST_BYTES:
        raise NoModelPack(f"Its layers are over {MOST_BYTES >> 30} GB: an adapter is smaller.")
    if not blobs:
        raise NoModelPack("No layer of it holds an adapter's files: adapter_config.json and safetensors.")
    return config, blobs, len(layers)


def wanted(layer: Any) -> Blob | None:
    """Return the layer if it holds an adapter's file, or may hold some; None for documents, code and data.

    Raises NoModelPack as `read_manifest` does.
    """
    kind = descriptor(layer, "layers")
    if not kind.startswith((WEIGHT, WEIGHT_CONFIG)):
        return None
    annotations = layer.get("annotations") or {}
    path = str(annotations.get(FILEPATH) or annotations.get(TITLE) or "")
    blob = Blob(path or layer["digest"].partition(":")[2], layer["digest"], layer["size"], kind)
    if blob.is_archive:
        return blob
    if not kind.endswith(".raw"):
        raise NoModelPack(f"A layer is packed as {kind[:100]!r}: push it as raw files, tar or tar+gzip.")
    parts = PurePosixPath(path).parts
    if not path or "\0" in path or "\\" in path or PurePosixPath(path).is_absolute() or ".." in parts:
        raise NoModelPack(f"A layer's path is {path[:100]!r}: it must lie in the artifact's folder.")
    return blob if any(fnmatch(parts[-1], pattern) for pattern in TAKEN) else None


def descriptor(value: Any, place: str) -> str:
    """Return the media type of an OCI descriptor.

    Raises NoModelPack, naming `place`, if it lacks its media type, sha256 digest or size.
    """
    is_whole = (
        isinstance(value, dict)
        and isinstance(value.get("mediaType"), str)
        and isinstance(value.get("digest"), str)
        and DIGEST.fullmatch(value["digest"])
        and type(value.get("size")) is int
        and value["size"] >= 0
        and isinstance(value.get("annotations") or {}, dict)
    )
    if not is_whole:
        raise NoModelPack(f"A descriptor in `{place}` lacks its media type, sha256 digest or size.")
    return str(value["mediaType"])


def precision_of(header: Json) -> str:
    """Return the number type of a safetensors header's tensors, or the types if there are several, as `F16, F32`."""
    types = {str(tensor["dtype"]) for name, tensor in header.items() if name != "__metadata__"}
    return ", ".join(sorted(types))


def read_configuration(text: bytes, manifest_layers: int) -> Json:
    """Return the configuration of an artifact. Raises NoModelPack if its parts are missing or contradict the layers."""
    config = parsed(text, "configuration")
    if any(not isinstance(config.get(name), dict) for name in ("descriptor", "config", "modelfs")):
        raise NoModelPack("The ModelPack's configuration lacks descriptor, config or modelfs.")
    diffs = config["modelfs"].get("diffIds")
    if config["modelfs"].get("type") != "layers" or not isinstance(diffs, list) or len(diffs) != manifest_layers:
        raise NoModelPack(f"modelfs of the ModelPack must name the {manifest_layers} layers by their diffIds.")
    return config


def parsed(text: bytes, name: str) -> Json:
    """Return the JSON object in the text. Raises NoModelPack, with `name`, for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise NoModelPack(f"The {name} is no JSON.") from None
    if not isinstance(value, dict):
        raise NoModelPack(f"The {name} is no JSON object.")
    return value


def title_of(config: Json) -> str:
    """Return a name of the model for its lineage, from the configuration's descriptor."""
    about = config["descriptor"]
    words = [about.get("name"), about.get("version")]
    return " ".join(str(word)[:LONGEST_TEXT] for word in words if word) or "a model without a name"
