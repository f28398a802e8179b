"""Declared variants: copies of a base model with other numbers, such as fewer bits, that serve its adapters.

A variant has the base's architecture, shapes and tokenizer. It is declared by a person with a reason; the loss that it
costs is measured, not assumed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import send_on_commit
from adapterhub.core.errors import Conflict, Invalid
from registry.domain_signals import cluster_changed
from registry.models import Alias, BaseModel, BaseModelStatus, Rollout

FIELD = "variant_of"
# The fields of config.json that an adapter's matrices and numbers depend on.
SHAPES = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias"),
)
# The parts of tokenizer.json that decide which tokens a text becomes.
TOKENS = ("model", "added_tokens", "normalizer", "pre_tokenizer")


def declare(variant: BaseModel, base: BaseModel, *, reason: str, by: Actor) -> None:
    """Declare that `variant` serves the adapters of `base`, and record that; the routers follow on commit.

    Nothing happens if it is declared already. Raises Invalid for a model that is not ready, the model itself, a chain
    of variants, and one that differs in architecture, shapes, tokenizer or chat template; Conflict if it is a variant
    of another model already.
    """
    with transaction.atomic():
        rows = BaseModel.objects.select_for_update().in_bulk(sorted({variant.pk, base.pk}))
        variant, base = rows[variant.pk], rows[base.pk]
        if variant.variant_of_id == base.pk:
            return
        require_relation(variant, base)
        if unlike := differences(variant, base):
            message = f"{variant} is no variant of {base}: it has another {', '.join(unlike)}."
            raise Invalid(message, field=FIELD, code="unlike_base")
        BaseModel.objects.filter(pk=variant.pk).update(variant_of=base)
        after = {FIELD: base.slug, "base_digest": base.digest, "digest": variant.digest}
        AuditEvent.record(Tag.VARIANT_DECLARED, variant, by=by, project=None, after=after, reason=reason)
        send_on_commit(cluster_changed)


def require_relation(variant: BaseModel, base: BaseModel) -> None:
    """Check that `variant` may become a variant of `base`, before their configurations are compared.

    Raises Invalid for a model that is not ready, for the same files, and for a chain of variants, and Conflict if
    `variant` is declared one already.
    """
    for model in (variant, base):
        if model.status != BaseModelStatus.READY or model.archived_at:
            raise Invalid(f"{model} is {model.status}, not ready.", field=FIELD, code="base_model_not_ready")
    if variant.pk == base.pk or variant.digest == base.digest:
        message = f"{variant} and {base} are the same files: adapters fit both without a relation."
        raise Invalid(message, field=FIELD, code="same_model")
    if base.variant_of:
        message = f"{base} is a variant itself: declare {variant} a variant of {base.variant_of}."
        raise Invalid(message, field=FIELD, code="chained_variant")
    if others := [model.slug for model in variant.variants.all()]:
        message = f"{variant} has variants of its own ({', '.join(others)}): there are no chains."
        raise Invalid(message, field=FIELD, code="chained_variant")
    if variant.variant_of:
        message = f"{variant} is declared a variant of {variant.variant_of}: revoke that first."
        raise Conflict(message, field=FIELD, code="is_variant")


def revoke(variant: BaseModel, *, reason: str, by: Actor, seen: QuerySet[Project]) -> None:
    """Revoke that `variant` serves its base's adapters, and record that; the routers follow on commit.

    Nothing happens if it is no variant. Raises Conflict while aliases or active rollouts on the variant's clusters
    serve versions of the base; its text names those of projects in `seen` and counts the others.
    """
    with transaction.atomic():
        variant = BaseModel.objects.select_for_update().get(pk=variant.pk)
        base = variant.variant_of
        if base is None:
            return
        require_unused(variant, base, seen)
        BaseModel.objects.filter(pk=variant.pk).update(variant_of=None)
        before = {FIELD: base.slug}
        AuditEvent.record(Tag.VARIANT_REVOKED, variant, by=by, project=None, before=before, reason=reason)
        send_on_commit(cluster_changed)


def require_unused(variant: BaseModel, base: BaseModel, seen: QuerySet[Project]) -> None:
    """Raise Conflict if clusters of the variant serve versions of `base`, by aliases or active rollouts.

    Its text names the versions of projects in `seen`, and only counts those of others.
    """
    aliases = Alias.objects.filter(cluster__base_model=variant)
    live = set(aliases.filter(version__base_digest=base.digest).values_list("project", "version__served_name"))
    candidates = Rollout.objects.active().filter(alias__in=aliases, candidate__base_digest=base.digest)
    live |= set(candidates.values_list("alias__project", "candidate__served_name"))
    visible = set(seen.values_list("pk", flat=True))
    names = sorted(name for project, name in live if project in visible)
    others = sum(project not in visible for project, _ in live)
    if live:
        parts = [*names[:5], *([f"{len(names) - 5} more"] if len(names) > 5 else [])]
        parts += [f"{others} of other projects"] if others else []
        raise Conflict(
            f"{variant} serves versions of {base} now: {', '.join(parts)}. Move their aliases to a cluster of {base} "
            "or to other versions first.",
            field=FIELD,
            code="variant_in_use",
        )


def differences(variant: BaseModel, base: BaseModel) -> list[str]:
    """Return the respects in which the models differ that an adapter depends on, such as `hidden_size` or "tokenizer".

    The list is empty if there are none.
    """
    unlike = [name for name in SHAPES if known(variant.config, name) != known(base.config, name)]
    unlike += ["rotary embedding"] if rotary(variant.config) != rotary(base.config) else []
    if variant.tokenizer_digest != base.tokenizer_digest and tokens_of(variant.folder) != tokens_of(base.folder):
        unlike.append("tokenizer")
    if variant.template_digest != base.template_digest:
        unlike.append("chat template")
    return unlike


def known(config: dict[str, Any], name: str) -> Any:
    """Return the value of a field of config.json; if it is left out, its default, or None if it has none."""
    heads = config.get("num_attention_heads") or 1
    defaults = {
        "num_key_value_heads": heads,
        "head_dim": (config.get("hidden_size") or 0) // heads,
        "attention_bias": False,
        "mlp_bias": False,
    }
    value = config.get(name)
    return defaults.get(name) if value is None else value


def rotary(config: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embedding, from either of the places where releases write them."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rope_theta", 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    return {"rope_theta": theta, **parameters, "rope_type": kind}


def tokens_of(folder: Path) -> Any:
    """Return the parts of tokenizer.json that decide which tokens a text becomes."""
    raw = json.loads((folder / "tokenizer.json").read_bytes())
    return {name: raw.get(name) for name in TOKENS}


def of_variants(path: str, base: BaseModel) -> Q:
    """Return the query condition that the base model at the lookup `path` is `base` or a declared variant of it."""
    return Q(**{path: base}) | Q(**{f"{path}__variant_of": base})
