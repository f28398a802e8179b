"""A world of realistic size for pages: jurisdictions, adapters, versions, traffic, runs. Bulk rows and a clock of its
own, so that it stands in seconds and its history reaches weeks back."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from unittest import mock

from django.db import transaction
from django.utils.timezone import now

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Project, User
from adapterhub.audit.access_log import copy_in
from adapterhub.audit.models import AuditEvent, head_of, lock_chain
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from adapterhub.webhooks.models import Attempt, Delivery, Webhook
from registry.models import (
    Adapter,
    AdapterVersion,
    Alias,
    Approval,
    BlindTest,
    Cluster,
    Response,
    Rollout,
    RolloutDecision,
    RolloutMinute,
    Signature,
    UsageDay,
)
from registry.models.blind_test import LETTERS
from registry.models.evaluation import VersionEvaluation
from registry.serving.reconciler import RECONCILER
from tests.builders import member
from tests.builders.rollouts import signed
from tests.pages.realistic_rows import (
    base_model,
    config_of,
    copy_versions,
    evaluation,
    may_serve,
    metric,
    parameters_of,
    plan,
    planned_ranks,
    uniform_ranks,
)
from training.models import Dataset, RankAnalysis, RunLog, RunMetric, TrainingRun

JURISDICTIONS = {
    "eu": "European Union",
    "de": "Germany",
    "fr": "France",
    "it": "Italy",
    "es": "Spain",
    "nl": "Netherlands",
    "pl": "Poland",
    "ie": "Ireland",
    "se": "Sweden",
    "ch": "Switzerland",
    "uk": "United Kingdom",
    "us": "United States",
}
TOPICS = {
    "dora": "operational resilience",
    "aml": "anti-money laundering",
    "aiact": "obligations for AI systems",
    "mica": "crypto assets",
}
METHODS = ("lora", "lora", "lora", "dora", "qlora", "adalora")
STEPS = [{"weight": 10, "hold_s": 3600, "min_samples": 500}, {"weight": 50, "hold_s": 14400, "min_samples": 1500}]
RAILS = [{"metric": "error_rate", "margin": 2}, {"metric": "latency", "margin": 0.5, "kind": "signal"}]
LOGGED = "step 240 of 400: loss 1.31, 2 140 tokens a second\n"
ANSWERS_BY_PROMPT = {
    "By when must a major ICT-related incident be reported first?": (
        "At the latest 4 hours after it is classified as major, 24 hours after it was detected (RTS on Article 20).",
        "Within 24 hours after the detection, to the competent authority (Article 19).",
        "Without undue delay.",
    ),
    "Who answers for the ICT risk of a bank?": (
        "Its management body bears the ultimate responsibility (Article 5(2)(a)).",
        "The management body (Article 5).",
        "The chief information officer answers for it.",
    ),
}
HYPERPARAMETERS = {"rank": 16, "steps": 400, "batch_size": 8, "learning_rate": 0.0004, "seed": 17}


class World:
    """Builds itself at construction; the random numbers are seeded."""

    def __init__(self, project: Project, alice: User, *, adapters: int = 40, versions: int = 300) -> None:
        self.project, self.alice, self.random = project, alice, random.Random(17)
        self.by, self.now = alice.as_actor(), now()
        self.base = base_model()
        self.trainer = self.person("trainer")
        self.operator = self.person("operator")
        with at_time(self.now - timedelta(days=61)) as self.clock:
            self.adapters = self.make_adapters(adapters)
            self.versions = self.make_versions(versions)
            self.clusters = [self.make_cluster(*each) for each in (("frankfurt", 3), ("dublin", 2), ("spare", 1))]
            self.aliases = self.make_aliases()
            self.blind_tests = self.make_blind_tests()
            self.responses = self.make_responses()
            self.datasets = self.make_datasets(max(2, adapters // 3))
            self.analyses = self.make_analyses(max(2, adapters // 5))
            self.runs = self.make_runs(max(4, versions // 8))
            self.rollouts = self.make_rollouts(max(2, len(self.aliases) // 5))
            self.hold()
            self.tell_webhook()

    def person(self, role: str) -> User:
        """Who has the role in the project; alice where nobody has."""
        membership = self.project.memberships.filter(role=role, user__is_service=False).select_related("user").first()
        return membership.user if membership else self.alice

    def make_adapters(self, count: int) -> list[Adapter]:
        pairs = [(land, topic) for topic in TOPICS for land in JURISDICTIONS][:count]
        return [self.make_adapter(land, topic) for land, topic in pairs]

    def make_adapter(self, land: str, topic: str) -> Adapter:
        self.tick(hours=4)
        text = f"{JURISDICTIONS[land]}: {TOPICS[topic]}, answers with the article that it stands on."
        fields = {"description": text, "tags": [land, topic], "created_at": self.clock.at}
        return Adapter.create(project=self.project, slug=f"{land}-{topic}", base_model=self.base, by=self.by, **fields)

    def tick(self, **by: float) -> datetime:
        self.clock.at = min(self.clock.at + timedelta(**by), self.now - timedelta(minutes=3))
        return self.clock.at

    def make_versions(self, count: int) -> list[AdapterVersion]:
        rows = [self.version(index) for index in range(count)]
        versions = copy_versions(rows)
        append([self.published(version) for version in versions], self.project)
        VersionEvaluation.objects.bulk_create(
            evaluation(version, self.random) for version in versions[:: max(1, count // 40)]
        )
        return versions

    def version(self, index: int) -> AdapterVersion:
        adapter = self.adapters[index % len(self.adapters)]
        number = 1 + index // len(self.adapters)
        digest = hashlib.sha256(f"{adapter.slug}{number}".encode()).hexdigest()
        lineage = self.lineage(adapter, number)
        ranks = planned_ranks(self.random) if "rank_analysis" in lineage else uniform_ranks()
        before, gain = 2.9 + self.random.random(), 0.5 + 0.06 * number
        parameters = parameters_of(ranks)
        status = "rejected" if index % 71 == 70 else "ready"
        return AdapterVersion(
            adapter=adapter,
            number=number,
            digest=digest,
            served_name=f"{adapter.slug}.v{number}-{digest[:12]}",
            status=status,
            base_digest=self.base.digest,
            method=self.random.choice(METHODS),
            ranks=ranks,
            message="q_proj of layer 3 holds a NaN." if status == "rejected" else "",
            lineage=lineage,
            max_rank=max(ranks.values()),
            parameters=parameters,
            size_bytes=4 * parameters,
            created_by=self.trainer,
            config=config_of(ranks),
            metrics={"loss_before": before, "loss_after": before - gain, "eval_tokens": 18432},
            created_at=self.tick(hours=4) - timedelta(minutes=self.random.randrange(200)),
        )

    def published(self, version: AdapterVersion) -> AuditEvent:
        by, after = self.trainer.as_actor(), {"digest": version.digest, "served_name": version.served_name}
        return AuditEvent(
            project=self.project,
            at=version.created_at,
            tag=Tag.VERSION_PUBLISHED,
            actor=by.user,
            actor_name=by.name,
            auth_method=by.method,
            object_type=AdapterVersion._meta.model_name,
            object_id=str(version.pk),
            object_name=str(version),
            after=after,
        )

    def lineage(self, adapter: Adapter, number: int) -> dict[str, str]:
        """Every second version has planned ranks; three in a row learnt from the same data."""

        def key(kind: str, counted: int) -> str:
            return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{kind} {adapter.slug} {counted}"))

        origins = {
            "run": key("run", number),
            "dataset": hashlib.sha256(f"{adapter.slug}{number // 3}".encode()).hexdigest(),
        }
        return origins if number % 2 else {**origins, "rank_analysis": key("ranks", number // 4)}

    def make_cluster(self, name: str, replicas: int) -> Cluster:
        fields = {"engine": "vllm", "max_loras": 32}
        cluster = Cluster.create(project=self.project, slug=name, base_model=self.base, by=self.by, **fields)
        for number in range(1, replicas + 1):
            # The names are those of a network that is not here: add_replica would not find their hosts.
            cluster.replicas.create(url=f"http://{name}-{number}.engines.internal:8000")
        return cluster

    def make_aliases(self) -> list[Alias]:
        """The first serve the last version but one: their newest is what rolls out."""
        lines = [self.servable(adapter) for adapter in self.adapters]
        rolling = max(2, len(lines) // 5)
        return [
            self.make_alias(place, line[-2 if place < rolling and len(line) > 1 else -1])
            for place, line in enumerate(lines)
            if line
        ]

    def servable(self, adapter: Adapter) -> list[AdapterVersion]:
        return [version for version in self.versions if version.adapter_id == adapter.pk and may_serve(version)]

    def make_alias(self, place: int, version: AdapterVersion) -> Alias:
        self.tick(minutes=20)
        slug, cluster = version.adapter.slug, self.clusters[place % 2]
        policy = {"quorum": 1} if place % 3 == 0 else {}
        return Alias.create(
            project=self.project, name=f"{slug}-live", cluster=cluster, version=version, policy=policy, by=self.by
        )

    def hold(self) -> None:
        """What the replicas report: nearly all that they should hold; one is away."""
        for cluster in self.clusters:
            moving = Rollout.objects.active().filter(alias__cluster=cluster)
            names = [rollout.candidate.served_name for rollout in moving]
            names += [alias.version.served_name for alias in self.aliases if alias.cluster_id == cluster.pk]
            for place, replica in enumerate(cluster.replicas.all()):
                replica.saw({}, "0.32.1")
                replica.loaded = {name: f"/served/{name[-12:]}" for name in names[: len(names) - place]}
                replica.save(update_fields=["loaded"])
        self.clusters[2].replicas.get().missed("It did not answer within 2 s: connection refused.")

    def make_rollouts(self, count: int) -> list[Rollout]:
        """One in each state, then promoted ones; the running one, the last to start, is in the midst of its step."""
        states = ["running", "awaiting_approval", "paused", "loading", "rolled_back"] + ["promoted"] * count
        ended = [self.make_rollout(*each) for each in zip(self.aliases[1:count], states[1:], strict=False)]
        self.clock.at = max(self.clock.at, self.now - timedelta(minutes=110))
        return [self.make_rollout(self.aliases[0], states[0]), *ended]

    def make_rollout(self, alias: Alias, state: str) -> Rollout:
        self.tick(minutes=70)
        candidate = [each for each in self.servable(alias.version.adapter) if each.pk != alias.version_id][-1]
        steps = [
            {"weight": 10, "hold_s": 3600, "min_samples": 500},
            {"weight": 50, "hold_s": 14400, "min_samples": 1500},
        ]
        rails = [{"metric": "error_rate", "margin": 2}, {"metric": "latency", "margin": 0.5, "kind": "signal"}]
        reason = "Lower held-out loss on the June amendments."
        by = self.operator.as_actor()
        rollout = Rollout.create(alias=alias, candidate=candidate, steps=steps, guardrails=rails, reason=reason, by=by)
        if state != "loading":
            if alias.quorum:
                signed(rollout)
            rollout.started(by=RECONCILER)
            self.measure(rollout)
        if state in ("paused", "awaiting_approval", "promoted", "rolled_back"):
            ended = self.clock.at if state in ("promoted", "rolled_back") else None
            Rollout.objects.filter(pk=rollout.pk).update(status=state, ended_at=ended)
        return rollout

    def measure(self, rollout: Rollout) -> None:
        for minute in range(5):
            at = self.now - timedelta(minutes=minute)
            for arm, rate in (("control", 4), ("candidate", 3)):
                fails = [1.0] * rate + [0.0] * (120 - rate)
                values = [("error_rate", value) for value in fails]
                values += [("latency", 0.4 + self.random.expovariate(9)) for _ in fails]
                RolloutMinute.add((rollout, arm, at, metric, value) for metric, value in values)

    def make_responses(self) -> list[Response]:
        """A day of answers of what is live, more of the first aliases."""
        rows = [
            self.response(alias, number)
            for place, alias in enumerate(self.aliases)
            for number in range(max(3, 60 - place))
        ]
        answers = Response.objects.bulk_create(rows)
        UsageDay.add(answers, set())
        return answers

    def response(self, alias: Alias, number: int) -> Response:
        at = self.now - timedelta(minutes=self.random.randrange(1, 1400))
        return Response(
            id=uuid.uuid5(uuid.NAMESPACE_OID, f"{alias.name} {number}").hex,
            project=self.project,
            at=at,
            alias_name=alias.name,
            version=alias.version,
            arm="none",
            is_sticky=True,
            status=200,
            total_ms=self.random.uniform(220, 900),
            ttft_ms=60.0,
            prompt_tokens=40,
            completion_tokens=self.random.randrange(20, 90),
        )

    def tell_webhook(self) -> None:
        """An address that took two events and is away for the third."""
        fields = {"url": "https://pager.compliance.example/hooks/adapterhub", "events": ["rollout:*", "alias:*"]}
        webhook = Webhook.objects.create(project=self.project, created_by=self.alice, **fields)
        events = AuditEvent.objects.filter(project=self.project, tag__startswith="rollout:")[:3]
        for event, answer in zip(events, (None, 200, 200), strict=False):
            status = "delivered" if answer else "pending"
            delivery = Delivery.objects.create(webhook=webhook, event=event, status=status, created_at=event.at)
            error = "" if answer else "It did not answer within 10 s."
            Attempt.objects.create(delivery=delivery, number=1, answer=answer, error=error, at=event.at)

    def make_blind_tests(self) -> list[BlindTest]:
        """The newest three versions of an adapter, asked twice; the others have voted on both, alice on one."""
        compared = [version.number for version in self.adapters[0].versions.all()[:3]]
        tests = [self.make_blind_test(compared, *each) for each in ANSWERS_BY_PROMPT.items()]
        people = [each.user for each in self.project.memberships.select_related("user") if each.user != self.alice][:3]
        for test in tests:
            for place, person in enumerate(people):
                test.vote("none" if place == 2 else LETTERS[place], by=person.as_actor())
        tests[0].vote(LETTERS[0], by=self.by)
        return tests

    def make_blind_test(self, compared: list[int], prompt: str, texts: tuple[str, ...]) -> BlindTest:
        answers = [
            {"number": number, "text": text, "response_id": "", "tokens": len(text.split()), "seconds": len(text) / 600}
            for number, text in zip(compared, texts, strict=False)
        ]
        return BlindTest.keep(self.adapters[0], prompt, answers, by=self.by)

    def make_datasets(self, count: int) -> list[Dataset]:
        lands = list(JURISDICTIONS)
        rows = [
            Dataset(
                project=self.project,
                name=f"{lands[n % 12]} incident reports {2024 + n // 12}",
                status="ready",
                digest=hashlib.sha256(f"dataset {n}".encode()).hexdigest(),
                rows=1200 + 37 * n,
                splits={"train": 1080 + 33 * n, "eval": 120 + 4 * n},
                columns=["prompt", "completion"],
                size_bytes=400_000,
                created_by=self.alice,
                created_at=self.tick(hours=3),
                format="jsonl",
            )
            for n in range(count)
        ]
        return Dataset.objects.bulk_create(rows)

    def make_analyses(self, count: int) -> list[RankAnalysis]:
        rows = [
            RankAnalysis(
                project=self.project,
                base_model=self.base,
                dataset=self.datasets[n % len(self.datasets)],
                budget={"uniform_rank": 16},
                rank_min=0,
                plan=plan(self.random),
                status="succeeded",
                created_by=self.alice,
                created_at=self.tick(minutes=90),
                finished_at=self.clock.at,
            )
            for n in range(count)
        ]
        return RankAnalysis.objects.bulk_create(rows)

    def make_runs(self, count: int) -> list[TrainingRun]:
        """The newest runs or waits, the others have ended; two have a curve."""
        runs = TrainingRun.objects.bulk_create(self.run(place, count) for place in range(count))
        for run in (runs[-1], runs[0]):
            RunMetric.objects.bulk_create(metric(run, step, self.random) for step in range(10, 250, 5))
        RunLog.objects.create(
            run=runs[-1], position=0, until=62, text="step 240 of 400: loss 1.31, 2 140 tokens a second\n"
        )
        return runs

    def run(self, place: int, count: int) -> TrainingRun:
        newer = count - place
        status = {1: "running", 2: "queued", 3: "queued"}.get(newer) or ("failed" if newer % 9 == 0 else "succeeded")
        version = self.versions[place] if status == "succeeded" else None
        adapter = version.adapter if version else self.adapters[place % len(self.adapters)]
        losses = version.metrics if version else {}
        dataset = self.datasets[place % len(self.datasets)]
        return TrainingRun(
            project=self.project,
            adapter=adapter,
            base_model=self.base,
            dataset=dataset,
            hyperparameters=HYPERPARAMETERS,
            status=status,
            version=version,
            created_by=self.alice,
            created_at=self.tick(minutes=40),
            attempt=1,
            loss_before=losses.get("loss_before"),
            loss_after=losses.get("loss_after"),
            reason="worker_lost" if status == "failed" else "",
            message="The worker was lost three times." if status == "failed" else "",
            progress={"step": 245, "total": 400, "eta_s": 900} if status == "running" else {},
            lease_expires_at=self.now + timedelta(days=3) if status == "running" else None,
        )


def append(events: list[AuditEvent], project: Project) -> None:
    """To the project's chain, all at once: one by one ten thousand would take a minute."""
    with transaction.atomic():
        lock_chain(project)
        sequence, head = head_of(project)
        for event in events:
            event.follow(sequence, head)
            sequence, head = event.sequence, event.hash
        copy_in(events)


class Clock:
    def __init__(self, at: datetime) -> None:
        self.at = at

    def read(self) -> datetime:
        return self.at


@contextmanager
def at_time(start: datetime) -> Iterator[Clock]:
    """The history is written as if it had happened since."""
    clock = Clock(start)
    modules = ("rollout", "fleet.replica", "approval", "decision")
    places = ("adapterhub.audit.models.now", *(f"registry.models.{module}.now" for module in modules))
    fields = [model._meta.get_field("created_at") for model in (Alias, Approval, BlindTest, Rollout)]
    fields += [model._meta.get_field("at") for model in (RolloutDecision, Signature)]
    patches = [mock.patch(place, new=clock.read) for place in places]
    patches += [mock.patch.object(field, "_get_default", new=clock.read) for field in fields]
    for patch in patches:
        patch.start()
    try:
        yield clock
    finally:
        for patch in patches:
            patch.stop()


def cast(project: Project) -> dict[str, User]:
    """More people than alice, so that lists of them are lists."""
    roles = {"dana": "approver", "emil": "operator", "fay": "trainer", "gus": "auditor"}
    people = {name: member(name, None) for name in roles}
    for name, role in roles.items():
        memberships.grant(project, people[name], role, by=system("command"))
    return people
