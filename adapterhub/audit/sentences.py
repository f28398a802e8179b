"""Audit events in plain words: who did what to which object, for people who know no tags."""

from __future__ import annotations

from adapterhub.audit.tags import Tag

OBJECTS = {
    "adapter_version": "version",
    "base_model": "base model",
    "rank_analysis": "rank analysis",
    "training_run": "training run",
    "blind_test": "blind test",
}
# What the subject of a tag did, where "promoted the rollout X" would not say it. `{}` stands for the object.
PHRASES = {
    Tag.RESPONSES_DROPPED: "dropped answers of {} that were past their retention",
    Tag.USER_CREATED: "created the account {}",
    Tag.USER_CHANGED: "changed the account {}",
    Tag.SERVICE_ACCOUNT_CREATED: "created the service account {}",
    Tag.SERVICE_ACCOUNT_HANDED_OVER: "handed the service account {} over",
    Tag.SERVICE_ACCOUNT_CLOSED: "closed the service account {}",
    Tag.MFA_ENABLED: "set up a second factor for {}",
    Tag.MFA_REMOVED: "removed the second factor of {}",
    Tag.MEMBERSHIP_GRANTED: "gave a role: {}",
    Tag.MEMBERSHIP_REVOKED: "took a role away: {}",
    Tag.SESSION_OPENED: "signed in",
    Tag.SESSION_REFUSED: "was refused at the sign-in",
    Tag.SESSION_REVOKED: "ended a session of {}",
    Tag.ACCESS_REFUSED: "was refused access to {}",
    Tag.AUDIT_READ: "read the audit trail",
    Tag.AUDIT_EXPORTED: "exported the audit trail",
    Tag.APPROVAL_REQUESTED: "asked for the {}",
    Tag.APPROVAL_SIGNED: "signed the {}",
    Tag.APPROVAL_APPROVED: "gave the last signature, so that it is approved: {}",
    Tag.APPROVAL_REJECTED: "rejected the {}",
    Tag.APPROVAL_LAPSED: "made a request lapse: {}",
    Tag.APPROVAL_USED: "made use of an approval: {}",
    Tag.GLASS_BROKEN: "allowed in an emergency, to be reviewed (broken glass): {}",
    Tag.GLASS_REVIEWED: "reviewed an emergency (broken glass): {}",
    Tag.VARIANT_DECLARED: "declared {} a variant that serves another base model's adapters",
    Tag.VARIANT_REVOKED: "revoked that {} is a variant that serves another base model's adapters",
    Tag.DATASET_READ: "read rows of the dataset {}",
    Tag.ERASURE_REQUESTED: "asked for the erasure of the dataset {}",
    Tag.ERASURE_REJECTED: "refused the erasure of the dataset {}",
    Tag.RETENTION_CHANGED: "changed how long the dataset {} is kept",
    Tag.HOLD_PLACED: "placed a legal hold on the dataset {}",
    Tag.HOLD_RELEASED: "released the legal hold on the dataset {}",
    Tag.RUN_RETENTION_CHANGED: "changed how long the training run {} is kept",
    Tag.RUN_HOLD_PLACED: "placed a legal hold on the training run {}",
    Tag.RUN_HOLD_RELEASED: "released the legal hold on the training run {}",
    Tag.WEIGHTS_READ: "downloaded the weights of the version {}",
    Tag.VERSION_KEPT: "stored the version {}, which engines cannot serve",
    Tag.VERSION_COMPARED: "compared an engine's numbers for the version {} with PEFT's",
    Tag.VERSION_CHECKED: "found the version {} fit to serve",
    Tag.DOSSIER_FROZEN: "froze the dossier of the version {}",
    Tag.BLIND_TEST_ASKED: "asked several versions the same prompt: {}",
    Tag.BLIND_TEST_VOTED: "voted in a blind test: {}",
    Tag.CLUSTER_GRANTED: "offered the cluster {} to another project",
    Tag.CLUSTER_GRANT_ACCEPTED: "accepted the offer of the cluster {}",
    Tag.CLUSTER_GRANT_WITHDRAWN: "withdrew the offer of the cluster {}",
    Tag.VERSION_LOADED: "loaded a version on the replica {}",
    Tag.VERSION_UNLOADED: "unloaded a version from the replica {}",
    Tag.LOAD_REFUSED: "could not load a version on the replica {}",
    Tag.ADAPTER_DEFAULT_SET: "changed what an adapter's bare name stands for: {}",
    Tag.ALIAS_MOVED: "let the alias {} serve another version",
    Tag.ALIAS_POLICY_CHANGED: "changed the policy of the alias {}",
    Tag.ROLLOUT_CREATED: "opened the rollout {}",
    Tag.ROLLOUT_STARTED: "gave the candidate its first share: {}",
    Tag.ROLLOUT_WEIGHT_SET: "set the candidate's share: {}",
    Tag.ROLLOUT_STEPPED: "took the next step of the rollout {}",
    Tag.ROLLOUT_WAITS: "let the rollout wait for an approval: {}",
    Tag.ROLLOUT_FAILED: "ended the rollout, since a replica could not load the candidate: {}",
    Tag.ROLLOUT_PROMOTED: "promoted the candidate: {}",
    Tag.ROLLOUT_ROLLED_BACK: "rolled back to the stable version: {}",
}
ASKED_TO_CANCEL = "cancel_requested"


def actor_in_words(name: str) -> str:
    """Return the actor's name as readers see it; "Nobody known" if it is empty.

    A part of the system is named as such: `system:checker` is "The system (checker)".
    """
    kind, separator, part = name.partition(":")
    return f"The system ({part.replace('_', ' ')})" if separator and kind == "system" else name or "Nobody known"


def phrase(tag: str) -> str:
    """Return what was done, from PHRASES, else from the tag itself; `{}` stands for the object where it is named."""
    if tag in PHRASES:
        return PHRASES[Tag(tag)]
    subject, _, action = tag.partition(":")
    noun = OBJECTS.get(subject, subject.replace("_", " "))
    if action == ASKED_TO_CANCEL:
        return f"asked to cancel the {noun} {{}}"
    if action in ("succeeded", "failed"):
        return f"reported that the {noun} {{}} {action}"
    return f"{action.replace('_', ' ')} the {noun} {{}}"


def sentence(tag: str, actor: str, subject: str) -> str:
    """Return an event as one sentence without a full stop; `actor` and `subject` are the names of who and what.

    If the words before the object end as its name begins ("of the version", "version 3"), that noun stands once.
    """
    before, _, after = phrase(tag).partition("{}")
    first, _, rest = subject.partition(" ")
    name = rest if rest and before.endswith(f"{first} ") else subject
    return f"{actor_in_words(actor)} {before}{name if '{}' in phrase(tag) else ''}{after}"
