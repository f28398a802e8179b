"""The commands that steer what goes on: pause, resume, approve and cancel a rollout, cancel a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.rollout_state import ACTIVE, remedy, standing
from adapterhub.cli.session import AsJson, Reason, hub, say
from adapterhub.client import ApiError, Client, calls
from adapterhub.client.calls import Call
from adapterhub.client.rest_types import Job, Rollout

Name = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias of the rollout.")]


def active(api: Client, alias: str, statuses: Sequence[str] = ACTIVE) -> Rollout:
    """Return the alias' newest rollout with one of these statuses. Raises Ended when there is none."""
    for row in api.rows(calls.rollouts(alias)):
        if row["status"] in statuses:
            return row
    raise Ended(f"{alias!r} has no active rollout, or you cannot see it.", Exit.USAGE)


def steer(alias: str, verb: Callable[[Rollout, str], Call[Rollout]], reason: str, as_json: bool) -> None:
    """Call the verb with the newest rollout of the alias in a status of ACTIVE and the reason; print its new state.

    Raises Ended if there is none.
    """
    with hub() as api:
        done = api.send(verb(active(api, alias), reason))
    say(done, standing({**done}), as_json)


def pause(name: Name, reason: Reason, as_json: AsJson = False) -> None:
    """Pause the alias' rollout: everybody gets the stable version until it is resumed."""
    steer(name, calls.pause, reason, as_json)


def resume(name: Name, reason: Reason, as_json: AsJson = False) -> None:
    """Resume the alias' paused rollout: the same share, and everybody on the side that they had."""
    steer(name, calls.resume, reason, as_json)


def approve(name: Name, reason: Reason, as_json: AsJson = False) -> None:
    """Approve the step with which the alias' rollout waits for a person; after the last step this promotes it.

    Exit code 8 when people have to sign first: that is done on the page of approvals, and by no token.
    """
    with hub() as api:
        rollout = active(api, name)
        if rollout["waits_for_signature"]:
            raise Ended(remedy({**rollout}), Exit.UNSIGNED, resource=rollout)
        if rollout["status"] != "awaiting_approval":
            state = standing({**rollout})
            raise Ended(f"There is nothing to approve: {state}.", Exit.CONFLICT, resource=rollout)
        done = api.send(calls.approve(rollout, reason))
    say(done, standing({**done}), as_json)


def cancel(
    name: Annotated[str, typer.Argument(metavar="ALIAS_OR_JOB", help="An alias, or the id of a job.")],
    reason: Reason,
    as_json: AsJson = False,
) -> None:
    """End the alias' rollout before its promotion, or cancel a training, a rank analysis or an evaluation."""
    with hub() as api:
        if is_id(name):
            job: Any = api.send(calls.cancel_job(job_of(api, name), reason))
            say(job, f"{job['id']} {job['status']}", as_json)
            return
        done = api.send(calls.cancel(active(api, name, (*ACTIVE, "draft")), reason))
    say(done, standing({**done}), as_json)


def is_id(text: str) -> bool:
    """Return True for a UUID, the form of a job's id."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def job_of(api: Client, pk: str) -> Job:
    """Return the training, rank analysis or evaluation with this id. Raises Ended when there is none."""
    kinds: list[Callable[[str], Call[Any]]] = [calls.training_run, calls.rank_analysis, calls.evaluation]
    for read in kinds:
        try:
            job: Job = api.send(read(pk))
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return job
    raise Ended(f"There is no job {pk}, or you cannot see it.", Exit.USAGE)
