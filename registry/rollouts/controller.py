"""Control loop of rollouts: judge the measurements, then roll back, pause, take the next step, promote, or wait.

Like the reconciler it relies only on the database, so that any run may be lost or repeated. Rollouts without
guardrails are moved by people alone.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from django.utils.timezone import now

from adapterhub.core.actor import system
from adapterhub.core.errors import Conflict, NotAllowed
from registry.experiments.guardrails import Action, Analysis
from registry.models import Rollout, RolloutMinute, RolloutStatus
from registry.models.judgement import judge, judgement, progress

LOOP = system("rollout")
log = logging.getLogger(__name__)


def judge_all() -> None:
    """Judge every serving rollout that has guardrails, and carry out the resulting action.

    A rollout that somebody else changed meanwhile, or that may not move, is skipped and logged.
    """
    serving = Rollout.objects.serving().exclude(guardrails=[])
    for rollout in serving.select_related("alias__project", "stable", "candidate"):
        try:
            RolloutMinute.remember_baseline(rollout)
            judge_and_act(rollout, now())
        except (Conflict, NotAllowed) as error:
            log.info("%s does not move: %s", rollout, error)


def judge_and_act(rollout: Rollout, at: datetime) -> Analysis:
    """Judge the rollout, carry out the resulting action, and return the analysis.

    Rolling back and pausing happen at once; the rollout goes on only when its present step is done. Raises Conflict if
    it was changed meanwhile, and NotAllowed if it may not move.
    """
    verdict = judge(rollout, at)
    numbers = judgement(rollout, at, verdict)
    details: dict[str, Any] = {"reason": " ".join(verdict.reasons), "by": LOOP, "evidence": numbers}
    if verdict.action is Action.ROLL_BACK:
        rollout.rollback(**details)
    elif verdict.action is Action.PAUSE:
        rollout.pause(**details, expected_generation=rollout.generation)
    elif rollout.status == RolloutStatus.RUNNING and progress(rollout, at).is_done:
        go_on(rollout, verdict.action, details)
    return verdict


def go_on(rollout: Rollout, action: Action, details: dict[str, Any]) -> None:
    """Leave a completed step: wait for people, advance, or promote.

    It waits if the step asks for approval, signatures of the plan are missing, or a protected alias is to be promoted.
    Nothing happens in the last step unless the action is to promote; then an evaluation that speaks against the
    candidate pauses the rollout instead. `details` are the reason, actor (`by`) and evidence. Raises Conflict if the
    rollout was changed meanwhile, and NotAllowed and InvalidTransition if it may not move.
    """
    step, same = rollout.steps[rollout.step], {**details, "expected_generation": rollout.generation}
    is_unsigned = not rollout.is_last_step and not rollout.is_signed
    if (
        step.get("approval")
        or is_unsigned
        or (rollout.is_last_step and action is Action.PROMOTE and rollout.alias.quorum)
    ):
        rollout.wait_for_approval(**same)
    elif not rollout.is_last_step:
        rollout.advance(**same)
    elif action is Action.PROMOTE:
        promote_or_pause(rollout, same)


def promote_or_pause(rollout: Rollout, details: dict[str, Any]) -> None:
    """Promote the candidate; if an evaluation speaks against it, pause the rollout with that reason instead.

    `details` are the arguments of `Rollout.promote`. Raises Conflict for any other reason, and NotAllowed as that does.
    """
    try:
        rollout.promote(**details)
    except Conflict as error:
        if error.code != "evaluation_objects":
            raise
        reason = f"It is not promoted: {error} Resume it when the version is measured anew, or roll it back."
        rollout.pause(**{**details, "reason": reason})
