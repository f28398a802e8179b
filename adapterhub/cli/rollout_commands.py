"""The commands that move traffic: rollout, promote, rollback, alias history."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import LONGEST_S, AsJson, Reason, Timeout, Wait, hub, say
from adapterhub.cli.waiting import following, until_ended
from adapterhub.client import ApiError, Client, calls
from adapterhub.client.final_states import ENDED, require_good
from adapterhub.client.rest_types import Guardrail, Rollout, Step

alias = typer.Typer(no_args_is_help=True, help="Public names that applications send as `model`.")
Name = Annotated[str, typer.Argument(metavar="ALIAS")]
# Errors that people or the control loop may still resolve while the command waits.
PASSING = ("approval_missing", "stale_generation", "invalid_transition")


def numbers(text: str, option: str, count: int) -> list[str]:
    """Split `a:b:c` into one to `count` parts, as texts. Raises Ended when there are more or one is empty."""
    parts = text.split(":")
    if not 1 <= len(parts) <= count or not all(parts):
        raise Ended(f"{option} {text!r} has too many parts or an empty one: see --help.", Exit.USAGE)
    return parts


def number(text: str, option: str) -> float:
    """Return the number in an option's text. Raises Ended, naming the option."""
    try:
        return float(text)
    except ValueError:
        raise Ended(f"{option}: {text!r} is not a number.", Exit.USAGE) from None


def step_of(text: str) -> Step:
    """Parse a step WEIGHT[:HOLD_S[:MIN_SAMPLES[:approval]]]; any fourth part means that it needs an approval.

    Raises Ended for another form.
    """
    parts = numbers(text, "--step", 4)
    hold_s, samples = (int(number(part, "--step")) for part in [*parts[1:3], "0", "0"][:2])
    return {"weight": number(parts[0], "--step"), "hold_s": hold_s, "min_samples": samples, "approval": len(parts) == 4}


def guardrail_of(text: str) -> Guardrail:
    """Parse a guardrail METRIC:MARGIN[:KIND[:LEVEL]]. Raises Ended for another form."""
    parts = numbers(text, "--guardrail", 4)
    rail: Guardrail = {"metric": parts[0], "margin": number(parts[1] if parts[1:] else "", "--guardrail")}
    if parts[2:]:
        rail["kind"] = parts[2]
    if parts[3:]:
        rail["level"] = number(parts[3], "--guardrail")
    return rail


def rollout(
    name: Name,
    candidate: Annotated[str, typer.Argument(help="Served name of the new version.")],
    reason: Reason,
    steps: Annotated[list[str], typer.Option("--step", metavar="WEIGHT[:HOLD_S[:MIN_SAMPLES[:approval]]]")],
    rails: Annotated[list[str], typer.Option("--guardrail", metavar="METRIC:MARGIN[:KIND[:LEVEL]]")] = [],  # noqa: B006
    wait: Wait = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Send the candidate a share of the traffic; --wait follows it until promotion, or exits with 1, paused with 7."""
    plan = [step_of(step) for step in steps]
    if wait and not rails:
        raise Ended(
            "--wait: nothing ends a rollout without a --guardrail, so it would wait for ever: add one.", Exit.USAGE
        )
    with hub() as api:
        opened = api.send(calls.open_rollout(name, candidate, plan, reason, [guardrail_of(rail) for rail in rails]))
        if wait:
            opened = until_ended(api, calls.rollout(opened["id"]), f"rollout of {name}", timeout)
    if not rails:
        typer.echo(f"It has no guardrail: it stays at {plan[0]['weight']:g} % until somebody moves it.", err=True)
    say(opened, f"{opened['id']} {opened['status']}", as_json)


def newest(api: Client, name: str) -> Rollout:
    """Return the alias' newest rollout that is no draft and was not discarded. Raises Ended if there is none."""
    rows = api.send(calls.rollouts(name))["results"]
    opened = [row for row in rows if row["status"] not in ("draft", "discarded")]
    if not opened:
        raise Ended(f"{name!r} has no rollout, or you cannot see it.", Exit.USAGE)
    return opened[0]


def promote(
    name: Name,
    reason: Reason,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for replicas and signatures.")] = False,
    timeout: Timeout = LONGEST_S,
    as_json: AsJson = False,
) -> None:
    """Let the candidate of the alias' newest rollout serve all traffic.

    Exit code 6 when a signature is missing or an evaluation objects.
    """
    with hub() as api:
        last = newest(api, name)
        if last["waits_for_signature"] and not wait:
            raise Ended(f"The plan of the rollout of {name} waits for signatures: --wait waits for them.", Exit.REFUSED)
        done = promote_when_allowed(api, last, reason, timeout) if wait else api.send(calls.promote(last, reason))
    say(done, f"{name} serves {done['candidate']}", as_json)


def promote_when_allowed(api: Client, last: Rollout, reason: str, timeout_s: float) -> Rollout:
    """Try to promote the rollout until it is allowed, and return it.

    Raises Failed when it ended otherwise, Ended when a signature was refused, and TimedOut after `timeout_s`.
    """
    with following(f"promotion of {last['candidate']}") as follower:
        for rollout in api.poll(calls.rollout(last["id"]), timeout_s):
            follower.update({**rollout})
            if rollout["status"] in ENDED:
                break
            is_ready = rollout["status"] != "loading" or rollout["waits_for_signature"]
            if is_ready and (done := tried(api, rollout, reason)):
                return done
    require_good(rollout, f"rollout of {rollout['alias']}")
    return rollout


def tried(api: Client, rollout: Rollout, reason: str) -> Rollout | None:
    """Try to promote; return the rollout, or None while signatures are missing, or its state has changed or forbids it.

    Raises Ended when the newest approval was rejected.
    """
    try:
        return api.send(calls.promote(rollout, reason))
    except ApiError as error:
        if error.code not in PASSING:
            raise
    approvals = api.send(calls.approvals(rollout=rollout["id"]))["results"]
    if approvals and approvals[0]["status"] == "rejected":
        raise Ended(f"The promotion of {rollout['candidate']} was rejected.", Exit.REFUSED)
    return None


def rollback(name: Name, reason: Reason, as_json: AsJson = False) -> None:
    """Roll back the alias' newest rollout: the stable version serves all traffic again, even after the promotion."""
    with hub() as api:
        done = api.send(calls.roll_back(newest(api, name), reason))
    say(done, f"{name} serves {done['stable']}", as_json)


@alias.command()
def history(
    name: Name,
    at: Annotated[str, typer.Option(help="A time with time zone: show only the version served at that time.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show every move of the alias, newest first; with --at, the version that served at that time."""
    with hub() as api:
        moves = api.send(calls.history(name, at))
    say(
        moves,
        "\n".join(f"{move['at']} {move['version']} {move['actor_name']}: {move['reason']}" for move in moves),
        as_json,
    )
