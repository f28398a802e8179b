"""Edge bundle: a folder that serves an alias on a machine without AdapterHub.

It holds the adapter, a reference to its base model, checksums and a script that starts the engine.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from adapterhub.artifacts import File, manifest_of
from registry.models import AdapterVersion, Alias

RUN = """#!/bin/sh
# ./run.sh FOLDER-OF-THE-BASE-MODEL [PORT [DEVICE]]: serves {alias} after all files were checked.
set -eu
model=$(cd "$1" && pwd)
cd "$(dirname "$0")"
sha256sum --quiet -c SHA256SUMS
(cd "$model" && sha256sum --quiet -c -) < BASE_SHA256SUMS
exec "${{PYTHON:-python3}}" -m serving_client.engine --model "$model" --served-model-name {base} \\
    --host 127.0.0.1 --port "${{2:-8100}}" --device "${{3:-cpu}}" --max-lora-rank {rank} \\
    --lora-modules {alias}=adapter
# The same with vLLM: vllm serve "$model" --served-model-name {base} --enable-lora --max-lora-rank {vllm_rank} \\
#     --lora-modules {alias}=adapter
"""


def write_bundle(alias: Alias, target: Path) -> None:
    """Write the bundle of the version that the alias serves into the existing folder `target`.

    The bundle is the adapter, `base.json`, checksums and `run.sh`. Raises ArtifactError if the version's files are lost
    or changed.
    """
    version = alias.version
    base = version.adapter.base_model
    version.fetch(target / "adapter")
    (target / "base.json").write_text(json.dumps(about(alias, version), indent=2, sort_keys=True) + "\n")
    (target / "BASE_SHA256SUMS").write_text(sums(base.identity_files()))
    rank = version.max_rank
    run = target / "run.sh"
    run.write_text(
        RUN.format(
            alias=shlex.quote(alias.name), base=shlex.quote(base.slug), rank=rank, vllm_rank=alias.cluster.max_lora_rank
        )
    )
    run.chmod(0o755)
    (target / "SHA256SUMS").write_text(sums(manifest_of(target)))


def about(alias: Alias, version: AdapterVersion) -> dict[str, str]:
    """Return the names, digests and source of the version and its base model, the content of `base.json`."""
    base = version.adapter.base_model
    return {
        "alias": alias.name,
        "version": version.served_name,
        "digest": version.digest,
        "base": base.slug,
        "base_source": base.source,
        "base_revision": base.revision,
        "base_digest": base.digest,
    }


def sums(files: list[File]) -> str:
    """Format the files' checksums as input for `sha256sum -c`."""
    return "".join(f"{file.sha256}  {file.path}\n" for file in files)
