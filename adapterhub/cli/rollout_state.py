"""The state of a rollout for who declared it: what serves, why the rollout is where it is, and what to do."""

from __future__ import annotations

from typing import Any

from adapterhub.cli.exit_codes import Exit

ACTIVE = ("loading", "running", "paused", "awaiting_approval")


def exit_of(rollout: dict[str, Any] | None) -> Exit:
    """Return the exit code that tells a pipeline whether somebody has to act on the rollout; DONE without one."""
    if rollout is None:
        return Exit.DONE
    if rollout["status"] == "paused":
        return Exit.PAUSED
    if rollout["status"] in ("rolled_back", "failed"):
        return Exit.FAILED
    return Exit.UNSIGNED if rollout["waits_for_signature"] or rollout["status"] == "awaiting_approval" else Exit.DONE


def standing(rollout: dict[str, Any]) -> str:
    """Return the rollout's state in one line: status, and what is known of step, share and reason."""
    status = str(rollout["status"]).replace("_", " ")
    where = f" at step {rollout['step'] + 1} of {len(rollout['steps'])}" if rollout["status"] in ACTIVE else ""
    share = f", {rollout['weight']:g} % for {rollout['candidate']}" if rollout["status"] in ACTIVE else ""
    reason = f": {rollout['status_reason']}" if rollout.get("status_reason") else ""
    return f"rollout of {rollout['alias']} {status}{where}{share}{reason}"


def remedy(resource: dict[str, Any]) -> str:
    """Return a sentence on what somebody has to do before the rollout goes on; "" if nothing, or for another object."""
    if "waits_for_signature" not in resource:
        return ""
    alias, status = resource["alias"], resource["status"]
    if status == "paused":
        return (
            f"Everybody gets {resource['stable']}. Go on with `adapterhub resume {alias} --reason ...`, "
            f"or end it with `adapterhub cancel {alias} --reason ...`."
        )
    if resource["waits_for_signature"]:
        return f"The candidate gets no more traffic before people sign the plan of {alias} on the page of approvals."
    if status == "awaiting_approval":
        return f"Somebody has to approve the step: `adapterhub approve {alias} --reason ...`."
    return ""
