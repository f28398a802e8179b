"""The technical dossier of a version: its records, under headings that follow Annex IV of the EU AI Act.

It claims no conformity. It says where something is not recorded by AdapterHub, such as the risk management of the whole
system.
"""

from __future__ import annotations

from typing import Any

from adapterhub.audit.installation_key import public_key_pem
from adapterhub.audit.models import AuditEvent
from registry.evidence.lineage import Past, lineage
from registry.models import AdapterVersion, BaseModel, Rollout

DISCLAIMER = (
    "The headings follow Annex IV of Regulation (EU) 2024/1689. This is a record of what this installation knows; "
    "it is no declaration of conformity and no legal assessment."
)
NOT_KNOWN = "Not recorded by AdapterHub: add it where the whole system is documented."


def dossier(version: AdapterVersion) -> dict[str, Any]:
    """Return the version's dossier, section by section, as values that JSON can hold."""
    past = Past.of(version)
    return {
        "title": f"Technical dossier of {version}",
        "note": DISCLAIMER,
        "1 General description": general(version),
        "2 Elements and development": development(version),
        "3 Monitoring and control": control(version, past),
        "4 Performance metrics": version.metrics or {"metrics": "None were recorded."},
        "5 Risk management and limits": limits(version),
        "6 Changes through the lifecycle": {"events": events(version), "lineage": lineage(version, past)},
        "7 Integrity": integrity(version),
    }


def general(version: AdapterVersion) -> dict[str, Any]:
    """Return section 1: purpose, names, base model, status, and the engines that can serve the version."""
    base = version.adapter.base_model
    return {
        "purpose": version.adapter.description or NOT_KNOWN,
        "project": version.project.slug,
        "adapter": version.adapter.slug,
        "version": version.number,
        "served name": version.served_name,
        "status": version.get_status_display(),
        "published": version.created_at.isoformat(),
        "by": str(version.created_by or "a machine"),
        "base model": {
            "name": base.slug,
            "source": base.source,
            "revision": base.revision,
            "digest": version.base_digest,
            "tokenizer": version.tokenizer_digest or NOT_KNOWN,
            "chat template": version.template_digest or NOT_KNOWN,
            **variants_of(base),
        },
        "engines": {
            verdict.label: f"{verdict.outcome.replace('_', ' ')}: {verdict.reason}" for verdict in version.verdicts()
        },
    }


def variants_of(base: BaseModel) -> dict[str, Any]:
    """Return {"variants": {slug: measurement}} of the declared variants, whose clusters may serve the base's versions.

    A measurement says what the variant costs, or "Not measured."; {} if there are no variants.
    """
    rows = base.variants.select_related("variant_of").prefetch_related("variant_measurements")
    known = {row.slug: row.measurement or "Not measured." for row in rows}
    return {"variants": known} if known else {}


def development(version: AdapterVersion) -> dict[str, Any]:
    """Return section 2: method, configuration, number of parameters, highest rank, data, plan, and the raw lineage.

    The data are digests, the plan is the id of the rank analysis or a sentence that there was none.
    """
    lineage = version.lineage
    return {
        "method": version.method,
        "configuration": version.config,
        "parameters": version.parameters,
        "highest rank": version.max_rank,
        "data": data_of(lineage),
        "plan": lineage.get("rank_analysis") or "No rank analysis: the ranks were given.",
        "as recorded": lineage,
    }


def data_of(lineage: dict[str, Any]) -> Any:
    """Return the digest of the training data from a version's lineage, or NOT_KNOWN.

    For a mixture it is a list of {dataset, weight}: the main dataset with weight 1, then the others.
    """
    digest = lineage.get("dataset") or NOT_KNOWN
    mixture = lineage.get("mixture")
    return [{"dataset": digest, "weight": 1.0}, *mixture] if mixture else digest


def control(version: AdapterVersion, past: Past) -> dict[str, Any]:
    """Return section 3: aliases that serve the version, approvals, rollouts, moves of aliases to it, and answers.

    `answers` is the number of answers that it gave.
    """
    return {
        "live as": [alias.name for alias in version.aliases.all()],
        "approvals": [approval_row(approval) for approval in past.approvals],
        "rollouts": [rollout_row(rollout) for rollout in past.rollouts],
        "served": [
            {"alias": move.alias.name, "from": move.at.isoformat(), "by": move.actor_name, "reason": move.reason}
            for move in past.moves
        ],
        "answers": past.answers,
    }


def approval_row(approval: Any) -> dict[str, Any]:
    """Return an approval with its signatures as a dict for JSON."""
    return {
        "id": str(approval.pk),
        "alias": approval.alias.name,
        "status": approval.status,
        "asked by": approval.author_name,
        "bound to": approval.bound,
        "signatures": [
            {
                "by": item.name,
                "decision": item.decision,
                "reason": item.reason,
                "at": item.at.isoformat(),
                "verdicts": item.verdicts or "none: no rollout was open",
            }
            for item in approval.signatures.all()
        ],
    }


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as a dict for JSON, with its plan, its decisions and the verdicts on which each was made."""
    return {
        "id": str(rollout.pk),
        "alias": rollout.alias.name,
        "status": rollout.status,
        "steps": rollout.steps,
        "guardrails": rollout.guardrails,
        "reason": rollout.reason,
        "decisions": [
            {
                "at": decision.at.isoformat(),
                "outcome": decision.outcome,
                "by": decision.actor_name,
                "reason": decision.reason,
                "verdicts": decision.verdicts,
            }
            for decision in rollout.decisions.all()
        ],
    }


def limits(version: AdapterVersion) -> dict[str, Any]:
    """Return section 5: the engines that cannot serve the version, and what AdapterHub does not check."""
    cannot = [verdict.label for verdict in version.verdicts() if verdict.outcome == "cannot"]
    return {
        "risk management": NOT_KNOWN,
        "not servable on": cannot,
        "backdoors": "An adapter that behaves well in every evaluation may contain a trigger: weights are not searched "
        "for one. What is recorded is who trained it, on which data and on which base model.",
    }


def events(version: AdapterVersion) -> list[dict[str, Any]]:
    """Return the audit events about the version as dicts for JSON, oldest first."""
    return [
        {
            "sequence": event.sequence,
            "at": event.at.isoformat(),
            "tag": event.tag,
            "by": event.actor_name,
            "reason": event.reason,
            "hash": bytes(event.hash).hex(),
        }
        for event in AuditEvent.objects.about(version).defer("canonical", "before", "after", "evidence").order_by("id")
    ]


def integrity(version: AdapterVersion) -> dict[str, Any]:
    """Return section 7: the digests, the signature, the public key, and how to verify them."""
    return {
        "artifact": f"sha256:{version.digest}",
        "base model": f"sha256:{version.base_digest}",
        "signature": version.signature or "none",
        "public key": public_key_pem().decode(),
        "audit proof": "Each event above names its place and hash in the project's chain; "
        "`python -m adapterhub.audit.verifier` checks an export of it without this installation.",
    }
