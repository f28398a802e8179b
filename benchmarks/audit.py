"""Audit: events a second through `AuditEvent.record`, batched reads, and verification, on an embedded Postgres.

The peer of the writes is a plain insert of the same row without chain and lock; of the verification, hashing alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import Row, arguments, publish

CLIENTS = 16
GOALS = {"one": 300, "many": 800, "reads": 2000, "verify": 200_000}


def boot(home: str) -> None:
    os.environ |= {"DJANGO_SETTINGS_MODULE": "adapterhub.settings", "ADAPTERHUB_HOME": home}
    import django

    django.setup()


def record_some(client: int, count: int, slugs: list[str]) -> None:
    """Each event in a transaction of its own, on one project or round the projects."""
    from django.db import transaction

    from adapterhub.accounts.models import Project
    from adapterhub.audit.models import AuditEvent
    from adapterhub.audit.tags import Tag
    from adapterhub.core.actor import system

    projects = [*Project.objects.filter(slug__in=slugs)]
    for number in range(count):
        project = projects[(client + number * CLIENTS) % len(projects)]
        with transaction.atomic():
            AuditEvent.record(
                Tag.ALIAS_MOVED,
                project,
                by=system("bench"),
                project=project,
                after={"n": number},
                reason="a reason of some length, as people give it",
            )


def insert_some(client: int, count: int, slugs: list[str]) -> None:
    """The peer: the same kind of row, committed one by one, without a chain."""
    from adapterhub.accounts.models import Project
    from adapterhub.audit.models import UnsealedEvent

    project = Project.objects.get(slug=slugs[0])
    for number in range(count):
        UnsealedEvent.objects.create(project=project, fields={"tag": "alias:moved", "n": number})


def observe_some(client: int, count: int, slugs: list[str]) -> None:
    from adapterhub.accounts.models import Project
    from adapterhub.audit.access_log import observe
    from adapterhub.audit.tags import Tag
    from adapterhub.core.actor import system

    project = Project.objects.get(slug=slugs[0])
    for number in range(count):
        observe(Tag.AUDIT_READ, by=system("bench"), project=project, resource=f"/page/{number}")


def rate(pool: ProcessPoolExecutor, work: Callable[..., None], count: int, slugs: list[str]) -> float:
    """Events a second over all clients."""
    began = time.perf_counter()
    for done in [pool.submit(work, client, count, slugs) for client in range(CLIENTS)]:
        done.result()
    return CLIENTS * count / (time.perf_counter() - began)


def sealed_rate() -> float:
    from adapterhub.audit.access_log import seal

    began = time.perf_counter()
    return seal() / (time.perf_counter() - began)


def verified_rate(slug: str, events: int) -> tuple[float, float]:
    """Events a second of the stand-alone verifier's walk, and of hashing the same bytes alone."""
    from adapterhub.audit import verifier

    links = chain_of(events)
    began = time.perf_counter()
    faults = list(verifier.faults(links))
    walked_rate = events / (time.perf_counter() - began)
    began = time.perf_counter()
    for link in links:
        hashlib.sha256(verifier.DOMAIN + link.prev_hash + link.canonical).digest()
    if faults:
        raise SystemExit(f"the benchmark's own chain does not hold: {faults[:3]}")
    return walked_rate, events / (time.perf_counter() - began)


def chain_of(events: int) -> list[Any]:
    from adapterhub.audit import verifier

    head, links = verifier.GENESIS, []
    for sequence in range(1, events + 1):
        canonical = (
            b'{"after":{"n":1},"project":"p0","reason":"as people give it","sequence":%d,"tag":"alias:moved"}'
            % sequence
        )
        after = verifier.link_hash(head, canonical)
        links.append(verifier.Link(sequence, canonical, head, after))
        head = after
    return links


def measure(home: str, short: bool) -> list[Row]:
    from adapterhub.accounts.models import Project
    from adapterhub.audit.models import UnsealedEvent

    slugs = [f"p{number}" for number in range(64)]
    Project.objects.bulk_create([Project(slug=slug, name=slug) for slug in slugs])
    count = 20 if short else 250
    with ProcessPoolExecutor(CLIENTS, get_context("spawn"), boot, (home,)) as pool:
        rate(pool, insert_some, 2, slugs)
        plain = rate(pool, insert_some, count, slugs)
        UnsealedEvent.objects.all().delete()
        one = rate(pool, record_some, count, slugs[:1])
        many = rate(pool, record_some, count, slugs)
        noted = rate(pool, observe_some, count, slugs)
    sealed = sealed_rate()
    walk, hashing = verified_rate("p0", 20_000 if short else 400_000)
    return [
        Row("events/s, one project, 16 clients; goal", one, GOALS["one"], one / GOALS["one"], 1),
        Row("events/s, 64 projects, 16 clients; goal", many, GOALS["many"], many / GOALS["many"], 1),
        Row("events/s, one project; plain insert", one, plain, one / plain),
        Row("events/s, 64 projects; plain insert", many, plain, many / plain),
        Row("reads noted/s, 16 clients; plain insert", noted, plain, noted / plain),
        Row("reads sealed/s in batches; goal", sealed, GOALS["reads"], sealed / GOALS["reads"], 1),
        Row("events verified/s; goal", walk, GOALS["verify"], walk / GOALS["verify"], 1),
        Row("events verified/s; sha256 alone", walk, hashing, walk / hashing),
    ]


def main() -> None:
    options = arguments(__doc__ or "")
    from adapterhub.embedded.postgres import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder)):
            boot(folder)
            from django.core.management import call_command

            call_command("migrate", verbosity=0)
            publish("audit", measure(folder, options.short), options.out)


if __name__ == "__main__":
    main()
