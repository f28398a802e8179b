"""Check of a whole declaration: every error that `adapterhub apply` would meet, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from django.db import transaction

from adapterhub.accounts import project_limits
from adapterhub.accounts.models import NamedVersions, Project
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, DomainError, Invalid
from registry.experiments.rollout_plan import require_end
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster, Rollout
from registry.models.adapter import VersionStatus
from registry.models.alias_policy import check_policy
from registry.models.rollout_states import in_words
from registry.models.slot_admission import require_slots
from training.models import Dataset, RankAnalysis, TrainingRun
from training.models.dataset import DatasetStatus
from training.models.job import require_room
from training.models.lm_eval_task import require_task
from training.models.mixture import Mixed
from training.models.training_run import check_rslora
from training.planning import preflight

# Fields of domain errors -> fields of the declaration.
FIELDS = {
    "base_model": "base",
    "dataset": "data",
    "policy": "gates.quorum",
    "alias": "rollout.alias",
    "cluster": "rollout.cluster",
    "steps": "rollout.steps",
    "guardrails": "rollout.guardrails",
    "candidate": "rollout",
    "version": "rollout",
    "memory": "hyperparameters",
    "disk": "hyperparameters",
}
# Fields of domain errors that the declaration calls by the same name.
OWN = ("adapter", "budget", "hyperparameters", "method", "mixture", "validation_dataset")
ClusterOf = Callable[[str], Cluster]


@dataclass(frozen=True)
class Refusal:
    """An error that carrying out a declaration would raise.

    `field` is its place in the file; `code`, `message` and the HTTP `status` are the error's.
    """

    field: str
    code: str
    message: str
    status: int


class DeclarationCheck:
    """The check of a declaration against the present state of its project.

    `run` fills `refusals` and `hyperparameters`. `cluster_of` returns the cluster that a reference names for the
    caller, and raises Invalid if there is none.
    """

    def __init__(self, project: Project, declared: dict[str, Any], *, by: Actor, cluster_of: ClusterOf) -> None:
        self.project, self.declared, self.by, self.cluster_of = project, declared, by, cluster_of
        self.refusals: list[Refusal] = []
        self.hyperparameters: dict[str, Any] | None = None

    @contextmanager
    def noting(self, field: str) -> Iterator[None]:
        """Catch a domain error of the block and add it to `refusals`.

        Its field is `field`, unless the error names a field of the declaration.
        """
        try:
            yield
        except DomainError as error:
            is_own = error.field.partition(".")[0] in OWN
            place = error.field if is_own else FIELDS.get(error.field, field)
            self.refusals.append(Refusal(place, error.code, error.detail, error.status))

    def run(self) -> dict[str, Any]:
        """Check every part of the declaration; return {refusals, hyperparameters}. Nothing is stored in the database.

        `refusals` are dicts of a Refusal's fields, empty if everything can be carried out. `hyperparameters` are all
        that the training would have; None if none is to be planned, because a version is named, or if it cannot be.
        """
        base, version = self.base(), self.version()
        for name, value in (self.declared["limits"] or {}).items():
            with self.noting(f"limits.{name}"):
                project_limits.require_allowed({name: value})
        if base and not version:
            with self.noting("adapter"):
                self.training(self.adapter(base))
        if self.declared["gates"]:
            self.tasks(base if version is None else None)
            self.policy()
        if self.declared["rollout"]:
            self.rollout(base, version)
        return {"refusals": [asdict(one) for one in self.refusals], "hyperparameters": self.hyperparameters}

    def tasks(self, base: BaseModel | None) -> None:
        """Check that each task of lm-eval among the gates is offered, and that a new version of the base can be asked.

        Without a base only the tasks are checked. A refusal is added for each error.
        """
        for place, gate in enumerate(self.declared["gates"]["tasks"]):
            with self.noting(f"gates.tasks.{place}.task"):
                require_task(gate["task"])
        if base and self.declared["gates"]["tasks"]:
            with self.noting("gates.tasks"):
                self.askable(base)

    def askable(self, base: BaseModel) -> None:
        """Check that the router will answer a new version by its name, as tasks ask it. Raises Invalid."""
        adapter, is_declared = self.declared["adapter"]["slug"], self.declared["cluster"] is not None
        if not is_declared and not Cluster.objects.serving(self.project).filter(base_model=base).exists():
            message = f"No cluster serves {base} to {self.project}: a task is asked of a served version."
            raise Invalid(message, code="not_served")
        protected = Alias.objects.protected().filter(project=self.project, version__adapter__slug=adapter)
        if self.project.named_versions == NamedVersions.APPROVED and protected.exists():
            message = (
                f"A new version of {adapter} cannot be asked before it is approved, as {protected[0]} is protected: "
                "change the project's named_versions, or leave the tasks out."
            )
            raise Invalid(message, code="version_not_approved")

    def base(self) -> BaseModel | None:
        """Return the declared base model; None, with a refusal added, if there is none of this name that is ready."""
        slug = self.declared["base"]
        base = BaseModel.objects.ready().filter(slug=slug).first()
        with self.noting("base"):
            if base is None:
                ready = ", ".join(BaseModel.objects.ready().values_list("slug", flat=True)) or "none"
                raise Invalid(f"There is no base model {slug!r} that is ready; ready: {ready}.", code="unknown_base")
        return base

    def version(self) -> AdapterVersion | None:
        """Return the version that the caller found to be made by this recipe; None if the declaration names none.

        None, and a refusal is added, for a name that no version of the project has.
        """
        named = self.declared["version"]
        rows = AdapterVersion.objects.filter(adapter__project=self.project).select_related("adapter__project")
        version = rows.filter(served_name=named).first() if named else None
        with self.noting("version"):
            if named and version is None:
                raise Invalid(f"There is no version {named!r} in {self.project}.", code="unknown_version")
        return version

    def adapter(self, base: BaseModel) -> Adapter:
        """Return the declared adapter, unsaved if it does not exist.

        Raises Invalid if it belongs to another base model.
        """
        slug = self.declared["adapter"]["slug"]
        stored = Adapter.objects.select_related("project", "base_model").filter(project=self.project, slug=slug).first()
        if stored is None:
            return Adapter(project=self.project, slug=slug, base_model=base)
        if stored.base_model_id != base.pk:
            message = f"{slug} is an adapter of {stored.base_model}; an adapter's base model cannot change."
            raise Invalid(message, field="base_model", code="wrong_base")
        return stored

    def dataset(self) -> Dataset:
        """Return the declared dataset, or an unsaved one for a file that is still to be uploaded.

        Raises Invalid if the project has no dataset of the declared number.
        """
        pk = self.declared["dataset"]
        if pk is None:
            columns = self.declared["columns"]
            return Dataset(project=self.project, name="data", status=DatasetStatus.READY, columns=columns)
        return self.stored(pk, "dataset")

    def stored(self, pk: int, field: str) -> Dataset:
        """Return the project's dataset with this number. Raises Invalid that names `field`."""
        dataset = Dataset.objects.filter(project=self.project, pk=pk).first()
        if dataset is None:
            raise Invalid(f"There is no dataset {pk} in {self.project}.", field=field, code="unknown_dataset")
        return dataset

    def training(self, adapter: Adapter) -> None:
        """Check data, ranks, hyperparameters, memory and the queue; add a refusal for each error.

        A dataset that is still being checked is treated as ready.
        """
        with self.noting("data"):
            dataset = self.dataset()
            dataset.require_for(self.declared["method"])
            is_checking = dataset.status == DatasetStatus.CHECKING
            if is_checking:
                dataset = Dataset(project=self.project, name=dataset.name, status=DatasetStatus.READY)
            dataset.require_ready()
            with self.noting("budget"):
                self.ranks(adapter, dataset)
            with self.noting("hyperparameters"):
                self.recipe(adapter, dataset)
        with self.noting("project"):
            require_room(self.project)

    def ranks(self, adapter: Adapter, dataset: Dataset) -> None:
        """Raise Invalid if the declared budget cannot be met for this adapter and dataset; nothing without a budget."""
        if self.declared["budget"]:
            base = adapter.base_model
            RankAnalysis.planned(
                project=self.project,
                base_model=base,
                dataset=dataset,
                budget=dict(self.declared["budget"]),
                preset=RankAnalysis.Preset.DEFAULT,
                by=self.by,
            )

    def recipe(self, adapter: Adapter, dataset: Dataset) -> None:
        """Check that the run can be trained and fits, and store its complete hyperparameters.

        Raises Invalid or Conflict.
        """
        validation = self.declared["validation_dataset"]
        mixed = [Mixed(self.stored(part["dataset"], "mixture"), part["weight"]) for part in self.declared["mixture"]]
        run = TrainingRun.planned(
            adapter=adapter,
            dataset=dataset,
            method=self.declared["method"],
            hyperparameters=self.declared["hyperparameters"],
            validation_dataset=validation and self.stored(validation, "validation_dataset"),
            mixture=mixed,
            by=self.by,
        )
        self.hyperparameters = run.hyperparameters
        check_rslora(run, is_planned=self.declared["budget"] is not None)
        preflight.require_trainable(run)
        preflight.require(run)

    def alias(self) -> Alias | None:
        """Return the alias of the declared rollout; None without a rollout, or if the alias does not exist yet."""
        name = (self.declared["rollout"] or {}).get("alias")
        rows = Alias.objects.select_related("project", "version", "cluster__base_model", "default_of")
        return rows.filter(project=self.project, name=name).first()

    def policy(self) -> None:
        """Check that the alias may get the declared quorum; add a refusal if it may not."""
        quorum = self.declared["gates"].get("quorum")
        alias = self.alias()
        with self.noting("gates.quorum"):
            if quorum is None:
                return
            if not self.declared["rollout"]:
                raise Invalid("A quorum is an alias' own: name it with a rollout, or leave it out.", code="no_alias")
            policy = {**(alias.policy if alias else {}), "quorum": quorum}
            check_policy(policy)
            if alias and alias.quorum and policy != alias.policy:
                with transaction.atomic():
                    alias.policy_approval(policy)

    def rollout(self, base: BaseModel | None, version: AdapterVersion | None) -> None:
        """Check the rollout's plan, its cluster, and that its alias may be moved to the version.

        A refusal is added for each error. `version` is None for one that is still to be trained.
        """
        wanted = self.declared["rollout"]
        alias, steps, guardrails = self.alias(), wanted["steps"], wanted["guardrails"]
        with self.noting("rollout"):
            # Unsaved: it judges the plan as the opening will.
            Rollout().plan(steps=steps, guardrails=guardrails, checks={}, targeting={})
            require_end(steps, guardrails)
        with self.noting("rollout.cluster"):
            cluster = self.as_declared(self.serving_cluster(alias, wanted["cluster"], base))
            if base:
                self.servable(cluster, base, version)
        if alias and (version is None or alias.version_id != version.pk):
            with self.noting("rollout.alias"):
                self.movable(alias, version)

    def as_declared(self, cluster: Cluster) -> Cluster:
        """Return the cluster with the limits that the declaration gives it, unsaved; any other as it is."""
        wanted = self.declared["cluster"]
        if wanted and cluster.project_id == self.project.pk and cluster.slug == wanted["slug"]:
            for name, value in wanted.items():
                setattr(cluster, name, value)
        return cluster

    def new_cluster(self, reference: str, base: BaseModel | None) -> Cluster | None:
        """Return the declared cluster, unsaved, if the reference names it and it does not exist yet; else None."""
        wanted = self.declared["cluster"]
        if not (wanted and base and reference in (wanted["slug"], f"{self.project.slug}.{wanted['slug']}")):
            return None
        if Cluster.objects.filter(project=self.project, slug=wanted["slug"]).exists():
            return None
        return Cluster(project=self.project, base_model=base, **wanted)

    def serving_cluster(self, alias: Alias | None, reference: str | None, base: BaseModel | None) -> Cluster:
        """Return the cluster that serves the alias, or if `alias` is None the one that `reference` names.

        Raises Invalid for a new alias without a cluster, for another cluster than the alias is on, and for one that
        does not serve the project.
        """
        if alias is None:
            if not reference:
                name = self.declared["rollout"]["alias"]
                message = f"There is no alias {name}: name the cluster that should serve it."
                raise Invalid(message, field="cluster", code="unknown_cluster")
            cluster = self.new_cluster(reference, base) or self.cluster_of(reference)
            cluster.require_offered(self.project)
            return cluster
        if reference and reference not in (alias.cluster.slug, alias.cluster.ref):
            message = f"{alias} is served by {alias.cluster}, and a rollout does not move it to {reference}: name that."
            raise Invalid(message, field="cluster", code="another_cluster")
        alias.cluster.require_serves(self.project)
        return alias.cluster

    def servable(self, cluster: Cluster, base: BaseModel, version: AdapterVersion | None) -> None:
        """Check that the cluster can serve the version or, if it is None, what the recipe would make.

        Raises Invalid.
        """
        if version:
            if version.status != VersionStatus.CHECKING:
                version.require_fits(cluster)
            return
        if not cluster.base_model.serves_adapters_of(base.digest):
            message = f"{cluster} serves {cluster.base_model}, and the adapter would be one of {base}."
            raise Invalid(message, field="cluster", code="wrong_base")
        if (rank := self.largest_rank()) > cluster.max_lora_rank:
            message = f"The version would have rank {rank}; {cluster} serves at most {cluster.max_lora_rank}."
            raise Invalid(message, field="hyperparameters.rank", code="rank_too_high")

    def largest_rank(self) -> int:
        """Return the rank that the training gives each module; 0 if an analysis plans it, or if it is not known."""
        if self.declared["budget"] or not self.hyperparameters:
            return 0
        is_extracted = self.declared["method"] in ("dora", "galore", "full")
        return int((is_extracted and self.hyperparameters["export_rank"]) or self.hyperparameters["rank"])

    def movable(self, alias: Alias, version: AdapterVersion | None) -> None:
        """Check that a rollout of the version, or of a new one if it is None, may be opened and promoted.

        Raises Conflict or Invalid.
        """
        active = alias.rollouts.active().select_related("candidate").first()
        if active and (version is None or active.candidate_id != version.pk):
            raise Conflict(
                f"{alias} has a rollout of {active.candidate} that has not ended ({in_words(active.status)}): "
                f"promote it, or end it with `adapterhub cancel {alias}`.",
                code="rollout_active",
            )
        if alias.default_of and alias.default_of.slug != self.declared["adapter"]["slug"]:
            raise Conflict(
                f"{alias} is the default of {alias.default_of}: end that before it serves another adapter.",
                code="default_of_another",
            )
        if not active:
            require_slots(alias, version or AdapterVersion(), Rollout.objects.active())
