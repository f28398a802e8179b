"""Adapters that engines cannot serve, stored as versions: they can be downloaded and reduced, and are never loaded."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from django.db import transaction

from adapterhub.audit.installation_key import signing_key
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.workspace import store
from registry.adapter_files.base_copies import parameters_of
from registry.adapter_files.findings import listed
from registry.adapter_files.finite_check import non_finite_in
from registry.adapter_files.header_rewrite import rewrite
from registry.adapter_files.manifest import refused
from registry.adapter_files.reducible import is_reducible, safe_config, saved_name
from registry.adapter_files.safetensors_header import read_header
from registry.adapter_files.served_config import write_config
from registry.adapter_files.tensor_names import PREFIX, WEIGHTS
from registry.models.adapter import Adapter, AdapterVersion, VersionStatus
from registry.version_signature import sign


def keep(
    adapter: Adapter, folder: Path, *, by: Actor, confirmation: str = "", lineage: dict[str, Any] | None = None
) -> AdapterVersion:
    """Store an adapter that PEFT computes and engines do not as the adapter's next version, `unservable`; record that.

    Its configuration is generated from checked fields; the folder may be changed and moved into the store.
    `confirmation` is a person's reason why it fits although it names another base model. Raises Conflict for one that
    can be served as it is or has been published already, and Invalid with every fault for one that PEFT cannot open
    either.
    """
    inspection = adapter.inspect_folder(folder, confirmation=confirmation)
    if inspection.is_accepted:
        raise Conflict("It can be served as it is: publish it without `keep`.", code="servable")
    if not is_reducible(inspection):
        inspection.require()
    weights = folder / WEIGHTS
    header = read_header(weights)
    tensors, parameters = list(header), parameters_of(adapter.base_model.folder)
    try:
        names = [inspection.names.get(name, saved_name(name, parameters)) for name in tensors]
        config = safe_config(inspection, names, adapter.base_model.facts(adapter.project, named=False), parameters)
    except (ValueError, TypeError) as error:
        raise Invalid(f"The configuration cannot be taken over: {error}.", field="adapter_config") from None
    renamed = list(zip(tensors, names, strict=True))
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise refused(f"Several tensors are {listed(doubled, 1)}: save it with PEFT's `save_pretrained`.", WEIGHTS)
    own = {new.removeprefix(PREFIX): header[old].shape for old, new in renamed}
    if resized := [name for name in own.keys() & parameters.keys() if own[name] != parameters[name]]:
        raise refused(f"{listed(sorted(resized), 1)} has another shape than the base model's.", WEIGHTS)
    if fault := non_finite_in(weights):
        raise refused(fault, WEIGHTS)
    if names != tensors:
        rewrite(weights, dict(renamed))
    write_config(folder, {**config, "base_model_name_or_path": adapter.base_model.source})
    size, digest = weights.stat().st_size, store().give_dir(folder)
    with transaction.atomic():
        number = AdapterVersion.next_number(adapter, digest)
        version = AdapterVersion(
            adapter=adapter,
            number=number,
            digest=digest,
            served_name=f"{adapter.project.slug}.{adapter.slug}.v{number}-{digest[:12]}",
            status=VersionStatus.UNSERVABLE,
            message=" ".join(finding.cause for finding in inspection.findings if finding.is_fault)[:2000],
            config=config if inspection.ranks else {},
            base_digest=adapter.base_model.digest,
            tokenizer_digest=adapter.base_model.tokenizer_digest,
            template_digest=adapter.base_model.template_digest,
            method="upload",
            max_rank=inspection.max_rank,
            ranks=inspection.ranks,
            parameters=sum(math.prod(tensor.shape) for tensor in header.values()),
            size_bytes=size,
            lineage=lineage or {},
            report=inspection.report(),
            created_by=by.user,
        )
        version.signature = sign(version.kept_identity(), signing_key())
        version.save(force_insert=True)
        AuditEvent.record(
            Tag.VERSION_KEPT,
            version,
            by=by,
            project=adapter.project,
            after={"digest": digest, "served_name": version.served_name},
            reason=confirmation,
        )
        transaction.on_commit(lambda: store().hold(digest))
    return version
