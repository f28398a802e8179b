"""The comparison of an engine with PEFT after a version's first load, on the same text.

An engine computes in fewer bits than PEFT, so their log-probabilities are not compared directly. What is compared is
how much the adapter changes them: in the engine against its own base model, in PEFT against the base model in float32.
"""

from __future__ import annotations

import json
from datetime import timedelta
from statistics import fmean
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from adapterhub.core.errors import DomainError
from adapterhub.workspace import place_for_child
from registry.exports import zip_export as exports
from registry.models import AdapterVersion, Replica, ServedComparison
from registry.serving import replica_calls
from registry.serving.replica_calls import Engine

COMPARER = system("comparison")
TOKENS = 48
# An adapter that moves a token by less than this, in nats, has no effect that a request would show.
LEAST_EFFECT = 1e-4
# The engine's change may be this far from PEFT's: a share of it, or what 16 bits round away.
MOST_SHARE, ROUNDING = 0.25, 0.02
# What could not be compared is tried again: the engine was busy, the worker full, the limit too low.
AGAIN = timedelta(hours=1)
Verdict = ServedComparison.Verdict


def compare_next() -> ServedComparison | None:
    """Compare a version that a healthy replica has loaded with PEFT; return the result, None if none is waiting.

    It is the oldest uncompared version of the first replica that has one. A version is uncompared if no replica with
    the same release of the engine was compared with it, or if the last attempt gave no numbers and was over an hour
    ago. A replica of a variant of the version's base model is passed over.
    """
    for replica in (
        Replica.objects.filter(is_healthy=True).exclude(engine_version="").select_related("cluster__base_model")
    ):
        is_kept = ~Q(verdict=Verdict.NOT_COMPARED) | Q(created_at__gt=now() - AGAIN)
        done = ServedComparison.objects.filter(is_kept, engine_version=replica.engine_version)
        # A variant of the base model has other numbers: what it costs is measured, and not compared here.
        base_digest = replica.cluster.base_model.digest
        versions = AdapterVersion.objects.ready().filter(served_name__in=replica.loaded, base_digest=base_digest)
        waiting = versions.exclude(pk__in=done.values("version")).order_by("pk")
        if version := waiting.select_related("adapter__project", "adapter__base_model").first():
            return compare(version, replica)
    return None


def compare(version: AdapterVersion, replica: Replica) -> ServedComparison:
    """Compare the version on the replica with PEFT, and store and return the result.

    An earlier comparison on this release of the engine is returned in its place if it has numbers, and replaced if it
    has none. An audit event is recorded unless verdict and reason stay the same.
    """
    facts = measured(version, replica) | {"replica": replica.url, "created_at": now()}
    with transaction.atomic():
        AdapterVersion.objects.select_for_update().get(pk=version.pk)
        of_release = ServedComparison.objects.filter(version=version, engine_version=replica.engine_version)
        former = of_release.first()
        if former and former.verdict != Verdict.NOT_COMPARED:
            return former
        row, _ = of_release.update_or_create(version=version, engine_version=replica.engine_version, defaults=facts)
        if former is None or (former.verdict, former.reason) != (row.verdict, row.reason):
            AuditEvent.record(
                Tag.VERSION_COMPARED,
                version,
                by=COMPARER,
                project=version.project,
                after={"verdict": row.verdict, "engine_version": row.engine_version},
                evidence={"tokens": row.tokens, "effect": row.effect, "difference": row.difference},
                reason=row.reason,
            )
    return row


def measured(version: AdapterVersion, replica: Replica) -> dict[str, Any]:
    """Return the fields of a comparison of the version on the replica with PEFT.

    If none is possible, they are the verdict NOT_COMPARED and the reason: the base model has over REFERENCE_BYTES,
    PEFT's numbers cannot be computed, or the replica does not answer.
    """
    base = version.adapter.base_model
    if base.size_bytes > settings.REFERENCE_BYTES:
        size, most = base.size_bytes / 2**20, settings.REFERENCE_BYTES >> 20
        reason = f"Its base model has {size:,.0f} MB; PEFT's numbers are computed up to {most:,} MB."
        return {"verdict": Verdict.NOT_COMPARED, "reason": reason}
    try:
        reference = reference_of(version)
        names = (base.slug, version.served_name)
        served = replica_calls.prompt_logprobs(
            Engine(replica.url, replica.cluster.engine_key), names, reference["tokens"]
        )
    except DomainError as error:
        return {"verdict": Verdict.NOT_COMPARED, "reason": str(error)[:500]}
    return judged(reference, served[base.slug], served[version.served_name])


def reference_of(version: AdapterVersion) -> dict[str, Any]:
    """Return the numbers of PEFT: {tokens, base, adapted}.

    These are token ids, and log-probabilities without and with the adapter, from an earlier comparison of the version
    or computed in a child process. Raises DomainError if the files cannot be read or the child process fails.
    """
    earlier = version.served_comparisons.exclude(verdict=Verdict.NOT_COMPARED).first()
    if earlier:
        return {name: earlier.details[name] for name in ("tokens", "base", "adapted")}
    with place_for_child(version.project.pk), exports.scratch_copy(version) as stored:
        out = stored.with_name("reference.json")
        arguments = [str(stored), str(version.adapter.base_model.folder), str(TOKENS), str(out)]
        exports.run_child("comparison", ["registry.exports.reference_process", *arguments], stored.parent)
        reference: dict[str, Any] = json.loads(out.read_bytes())
        return reference


def judged(reference: dict[str, Any], base: list[float], adapted: list[float]) -> dict[str, Any]:
    """Return the fields of a comparison, with the verdict, from the engine's log-probabilities.

    `base` are those of the base model, `adapted` those with the adapter, one for each token but the first. `effect` is
    the mean absolute change that the adapter makes in PEFT, `difference` how far the engine's change is from it on
    average, both in nats per token.
    """
    in_peft = changes(reference["base"], reference["adapted"])
    in_engine = changes(base, adapted)
    effect = fmean(map(abs, in_peft))
    difference = fmean(abs(one - other) for one, other in zip(in_engine, in_peft, strict=True))
    if fmean(map(abs, in_engine)) < LEAST_EFFECT < effect:
        verdict, reason = Verdict.NO_EFFECT, "The engine answers as if the adapter were not there."
    elif difference > max(MOST_SHARE * effect, ROUNDING):
        verdict, reason = Verdict.DIFFERS, "The engine changes the base model's answers otherwise than PEFT does."
    else:
        verdict, reason = Verdict.MATCHES, ""
    return {
        "verdict": verdict,
        "reason": reason,
        "tokens": len(reference["tokens"]),
        "effect": effect,
        "difference": difference,
        "details": {**reference, "served_base": base, "served": adapted},
    }


def changes(before: list[float], after: list[float]) -> list[float]:
    """Return the change of each token's log-probability from `before` to `after`."""
    return [new - old for old, new in zip(before, after, strict=True)]
