"""The commands about what serves: `adapterhub cluster` and `adapterhub replica`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.session import AsJson, Project, Reason, hub, project_of, say
from adapterhub.client import Client, fleet
from adapterhub.client.rest_types import Replica, ReplicaState
from serving_client.engine_hosts import normalised

cluster = typer.Typer(no_args_is_help=True, help="Clusters: replicas of one engine with one base model.")
replica = typer.Typer(no_args_is_help=True, help="Replicas: the engine processes of clusters.")
Slug = Annotated[str, typer.Argument(metavar="CLUSTER", help="Its slug, or PROJECT.SLUG.")]
Which = Annotated[str, typer.Argument(metavar="REPLICA", help="Its number, or its address.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="Address of the engine, http://host:port.")]
Confirm = Annotated[bool, typer.Option("--confirm", help="Cut off the live versions that nothing else holds.")]
Discovery = Annotated[
    str | None,
    typer.Option(help="Where replicas are found: dns://host:port, srv://name, kubernetes://namespace/label=value."),
]
KeyFile = Annotated[
    str, typer.Option("--engine-key-file", help="File with the API key of the engines; an empty file removes the key.")
]


def key_in(file: str) -> dict[str, str]:
    """Return {"engine_key": the key in the file}; {} without a file. Raises Ended if the file cannot be read."""
    if not file:
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            return {"engine_key": stream.read().strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise Ended(f"--engine-key-file {file} cannot be read: {error}", Exit.USAGE) from None


def given(**options: Any) -> dict[str, Any]:
    """Return the options whose value is not None."""
    return {name: value for name, value in options.items() if value is not None}


def replica_named(api: Client, which: str) -> Replica:
    """Return the replica of this number or address. Raises Ended if the caller sees none."""
    rows = list(api.rows(fleet.replicas()))
    wanted = which if which.isdecimal() else address_in(which)
    match = next((row for row in rows if wanted in (str(row["id"]), row["url"])), None)
    if match is None:
        raise Ended(f"There is no replica {which!r} that you can see.", Exit.USAGE)
    return match


def address_in(text: str) -> str:
    """Return the address in the spelling that the server stores. Raises Ended for a malformed one."""
    try:
        return normalised(text)
    except ValueError as error:
        raise Ended(f"{text!r} is neither the number nor the address of a replica: {error}.", Exit.USAGE) from None


@cluster.command("state")
def state(name: Slug, as_json: AsJson = False) -> None:
    """Show for each replica what it should hold, what it holds, and what is wrong."""
    with hub() as api:
        rows = api.send(fleet.cluster_state(name))
    say(rows, "\n".join(map(line_of, rows)) or "It has no replica.", as_json)


def line_of(row: ReplicaState) -> str:
    """Return the state of a replica in one line."""
    health = "drained" if row["draining_since"] else "healthy" if row["is_healthy"] else "away"
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in counted(row))
    return f"{row['id']} {row['url']} {health}: {counts}. {row['message']}".rstrip()


def counted(row: ReplicaState) -> list[tuple[str, list[str]]]:
    """Return the versions of a replica by kind: held, missing, and foreign."""
    return [("held", row["observed"]), ("missing", row["missing"]), ("foreign", row["foreign"])]


@cluster.command("create")
def create(
    slug: Annotated[str, typer.Argument(metavar="SLUG")],
    base_model: Annotated[str, typer.Argument(metavar="BASE_MODEL")],
    project: Project = "",
    engine: Annotated[str | None, typer.Option(help="embedded or vllm.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="As the engines were started with.")] = None,
    max_loras: Annotated[int | None, typer.Option(help="As the engines were started with.")] = None,
    routing: Annotated[str | None, typer.Option(help="least_loaded or prefix_affinity.")] = None,
    discovery: Discovery = None,
    engine_key_file: KeyFile = "",
    as_json: AsJson = False,
) -> None:
    """Create a cluster."""
    limits = given(
        engine=engine, max_lora_rank=max_lora_rank, max_loras=max_loras, routing=routing, discovery=discovery
    )
    fields = limits | key_in(engine_key_file)
    with hub() as api:
        created = api.send(fleet.create_cluster(project_of(api, project), slug, base_model, **fields))
    say(created, f"{created['project']}.{created['slug']}", as_json)


@cluster.command("change")
def change(
    name: Slug,
    reason: Reason,
    engine: Annotated[str | None, typer.Option(help="embedded or vllm.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="As the engines were started with.")] = None,
    max_loras: Annotated[int | None, typer.Option(help="As the engines were started with.")] = None,
    routing: Annotated[str | None, typer.Option(help="least_loaded or prefix_affinity.")] = None,
    discovery: Discovery = None,
    engine_key_file: KeyFile = "",
    confirm: Confirm = False,
    as_json: AsJson = False,
) -> None:
    """Change how the cluster's engines were started, their API key, how routers choose, or where they are found."""
    limits = given(
        engine=engine, max_lora_rank=max_lora_rank, max_loras=max_loras, routing=routing, discovery=discovery
    )
    fields = limits | key_in(engine_key_file)
    with hub() as api:
        changed = api.send(fleet.change_cluster(name, reason, confirm=confirm, **fields))
    say(changed, f"{name} changed", as_json)


@cluster.command("drain")
def drain(name: Slug, reason: Reason, confirm: Confirm = False, as_json: AsJson = False) -> None:
    """Drain all replicas of the cluster."""
    with hub() as api:
        drained = api.send(fleet.drain_cluster(name, reason, confirm=confirm))
    say(drained, f"{name} is drained", as_json)


@cluster.command("delete")
def delete(name: Slug, reason: Reason) -> None:
    """Delete a cluster that has neither aliases nor replicas."""
    with hub() as api:
        api.send(fleet.delete_cluster(name, reason))
    typer.echo(f"{name} is deleted")


@replica.command("add")
def add(name: Slug, url: Url, as_json: AsJson = False) -> None:
    """Add a running engine to a cluster."""
    with hub() as api:
        added = api.send(fleet.add_replica(name, url))
    say(added, f"{added['id']} {added['url']}", as_json)


@replica.command("move")
def move(which: Which, url: Url, reason: Reason, as_json: AsJson = False) -> None:
    """Correct a replica's address."""
    with hub() as api:
        moved = api.send(fleet.change_replica(replica_named(api, which)["id"], url, reason))
    say(moved, f"{moved['id']} {moved['url']}", as_json)


@replica.command("drain")
def drain_one(which: Which, reason: Reason, confirm: Confirm = False, as_json: AsJson = False) -> None:
    """Send a replica no more requests; it unloads what it holds."""
    with hub() as api:
        drained = api.send(fleet.drain_replica(replica_named(api, which)["id"], reason, confirm=confirm))
    say(drained, f"{drained['url']} is drained", as_json)


@replica.command("resume")
def resume(which: Which, reason: Reason, as_json: AsJson = False) -> None:
    """Let a drained replica serve again."""
    with hub() as api:
        resumed = api.send(fleet.resume_replica(replica_named(api, which)["id"], reason))
    say(resumed, f"{resumed['url']} serves again", as_json)


@replica.command("delete")
def delete_one(which: Which, reason: Reason, confirm: Confirm = False) -> None:
    """Delete a replica, whether it answers or not; its engine is left alone."""
    with hub() as api:
        match = replica_named(api, which)
        api.send(fleet.delete_replica(match["id"], reason, confirm=confirm))
    typer.echo(f"{match['url']} is deleted")
