"""The steps that carry out a declaration. Each checks the current state first and changes only what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adapterhub.cli import datasets
from adapterhub.cli.declaration import refusal
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.cli.fleet.cluster_step import TheCluster
from adapterhub.cli.fleet.project_commands import TheLimits
from adapterhub.cli.plan_state import Change, State, Step, known
from adapterhub.cli.version_commands import require_no_worse, require_scores
from adapterhub.client import ApiError, calls
from adapterhub.client.calls import Call
from adapterhub.client.rest_types import Json, Page, RankAnalysis, TrainingRun, Version

UNDER_WAY = ("queued", "running")
USABLE = ("checking", "ready")


class TheAdapter:
    """The step that creates the adapter, or changes its description and tags."""

    def plan(self, state: State) -> Change | None:
        """Return the creation of the adapter or the change of its description and tags; None if it is as declared."""
        wanted = state.declared.adapter
        state.adapter = stored = state.find(calls.adapter(state.named(wanted.slug)))
        if stored is None:
            return Change("create", "adapter", wanted.slug, f"an adapter of {state.declared.base}")
        pairs = {
            "description": (stored["description"], wanted.description),
            "tags": (stored["tags"], wanted.tags),
        }
        changed = [name for name, (present, declared) in pairs.items() if present != declared]
        return Change("change", "adapter", wanted.slug, ", ".join(changed)) if changed else None

    def do(self, state: State) -> None:
        """Create the adapter, or change its description and tags."""
        wanted = state.declared.adapter
        fields = {"description": wanted.description, "tags": wanted.tags}
        if state.adapter:
            state.adapter = state.api.send(calls.change_adapter(state.named(wanted.slug), **fields))
        else:
            creation = calls.create_adapter(state.project, wanted.slug, state.declared.base, **fields)
            state.adapter = state.api.send(creation)


class TheData:
    """The step that provides the dataset: by a file's content, or by number."""

    def file(self, state: State) -> Path:
        """Return the path of the declared file, relative to the declaration's folder."""
        return state.file.parent / state.declared.data

    def plan(self, state: State) -> Change | None:
        """Return the upload of a file whose content the project lacks, or the check to wait for; None if there is none.

        Stores the dataset in the state if it exists, and the columns of a file that the server has checked. Raises
        Ended for what is neither a file nor a number.
        """
        if state.declared.data.isdecimal():
            return self.take(state, int(state.declared.data))
        if not self.file(state).is_file():
            message = f"{self.file(state)} is neither a file nor the number of a dataset."
            raise refusal(state.file, [{"field": "data", "message": message}], Exit.USAGE)
        same = datasets.looked_up(state.api, state.project, self.file(state))
        if same["dataset"] is not None:
            return self.take(state, same["dataset"], same["status"])
        try:
            checked = state.api.send(calls.check_dataset(state.project, self.file(state)))
            state.dataset, state.columns = checked["dataset"], checked["columns"]
        except ApiError as error:
            if error.code != "too_large_to_look_at":
                raise
        if state.dataset:
            return None
        return Change("create", "dataset", state.declared.data, "no dataset has this content")

    def take(self, state: State, pk: int, status: str | None = None) -> Change | None:
        """Store an existing dataset in the state; return the wait for its check if it is in progress, else None."""
        if status is None:
            dataset = state.find(calls.dataset(pk))
            status = dataset and dataset["status"]
        if status != "checking":
            state.dataset = pk
            return None
        state.checking = pk
        return Change("follow", "dataset", state.declared.data, f"{pk} is being checked")

    def do(self, state: State) -> None:
        """Upload the file unless that was done, wait for its check, and store the dataset's id."""
        if state.checking is None:
            state.dataset = datasets.uploaded(state.api, state.project, self.file(state), state.timeout_s)
        else:
            name = state.declared.data
            dataset = state.api.send(calls.dataset(state.checking))
            state.dataset, state.checking = datasets.checked(state.api, dataset, name, state.timeout_s), None


class TheRanks:
    """The step that plans the rank of every module before the training, if the file has a budget."""

    def plan(self, state: State) -> Change | None:
        """Return the analysis to run or to wait for; None without a budget or if there is a plan for it.

        Stores in the state the newest analysis of this data, base model and budget that succeeded or is in progress.
        """
        if state.declared.budget is None:
            return None
        wanted = state.declared.budget.model_dump(exclude_none=True)
        ((kind, value),) = wanted.items()
        name = f"{kind}={value}"
        if state.dataset is None:
            return Change("run", "rank analysis", name, "there is none for this data")
        query = calls.rank_analyses(
            project=state.project,
            base_model=state.declared.base,
            dataset=str(state.dataset),
            preset="default",
            fields="id,status,budget,message,reason",
        )
        alive = ("succeeded", *UNDER_WAY)
        state.analysis = state.newest(query, lambda row: row["status"] in alive and budget_of(row) == wanted)
        if state.analysis is None:
            return Change("run", "rank analysis", name, "there is none for this budget")
        if state.analysis["status"] in UNDER_WAY:
            return Change("follow", "rank analysis", name, f"{state.analysis['id']} is in progress")
        return None

    def do(self, state: State) -> None:
        """Run the analysis unless it runs already, and wait for its end.

        Raises Failed if it does not succeed, and TimedOut.
        """
        if state.analysis is None:
            wanted = known(state.declared.budget).model_dump(exclude_none=True)
            state.analysis = state.api.send(
                calls.analyze(state.project, state.declared.base, known(state.dataset), wanted)
            )
        state.analysis = state.followed(calls.rank_analysis(state.analysis["id"]), "rank analysis")


def budget_of(analysis: RankAnalysis) -> Json:
    """Return the budget of an analysis as {kind: value}, the declaration's form, also if it is stored as two fields."""
    budget = analysis["budget"]
    return {budget["kind"]: budget["value"]} if "kind" in budget else budget


class TheVersion:
    """The step that finds a usable version made by exactly this recipe, or trains one."""

    def plan(self, state: State) -> Change | None:
        """Return the training or the check to run or to wait for; None if there is such a version.

        Stores in the state the newest run of the recipe that is in progress or has a usable version, and that version.
        """
        slug = state.declared.adapter.slug
        analysis = state.analysis
        planned = state.declared.budget is None or bool(analysis and analysis["status"] == "succeeded")
        if not (state.adapter and state.dataset and planned):
            return Change("run", "training", slug, "the data or the ranks are new")
        state.run = state.newest(self.runs(state), self.fits(state))
        if state.run is None:
            return Change("run", "training", slug, "no version was trained on this data with these settings")
        state.version = state.run["version"]
        if state.version is None:
            return Change("follow", "training", slug, f"{state.run['id']} is in progress")
        if self.of(state, state.version)["status"] == "checking":
            return Change("follow", "version", state.version, "it is being checked")
        return None

    def recipe(self, state: State) -> Json:
        """Return those fields of a training run's request that the declaration decides."""
        planned = {"rank_analysis": state.analysis["id"]} if state.analysis else {}
        mixture = [mixed.model_dump() for mixed in state.declared.mixture]
        data = {"mixture": mixture, "validation_dataset": state.declared.validation_dataset}
        chosen = {name: value for name, value in data.items() if value}
        return {"method": state.declared.method, "hyperparameters": state.declared.hyperparameters, **chosen, **planned}

    def runs(self, state: State) -> Call[Page[TrainingRun]]:
        """Return the call that lists the adapter's runs on this data by this method."""
        return calls.training_runs(
            project=state.project,
            adapter=state.declared.adapter.slug,
            dataset=str(state.dataset),
            method=state.declared.method,
        )

    def fits(self, state: State) -> Callable[[TrainingRun], bool]:
        """Return a test for runs that the declaration would repeat.

        Such a run has the same settings and is in progress or has a usable version.
        """
        recipe = self.recipe(state)
        whole = state.check()["hyperparameters"]

        def same(run: TrainingRun) -> bool:
            recipe_of_run = (run["hyperparameters"], run["rank_analysis"], run["budget"])
            data_of_run = (run["mixture"], run["validation_dataset"])
            alive = run["status"] in UNDER_WAY or (run["status"] == "succeeded" and self.is_usable(state, run))
            is_recipe = recipe_of_run == (whole, recipe.get("rank_analysis"), None)
            return is_recipe and data_of_run == (recipe.get("mixture", []), recipe.get("validation_dataset")) and alive

        return same

    def is_usable(self, state: State, run: TrainingRun) -> bool:
        """Return True if the version of the run is ready or still being checked."""
        return self.of(state, known(run["version"]))["status"] in USABLE

    def of(self, state: State, served_name: str) -> Version:
        """Return the version with this served name."""
        return state.api.send(calls.version(state.named(state.declared.adapter.slug), number_of(served_name)))

    def do(self, state: State) -> None:
        """Train unless a run is in progress, and wait for it and for its version's check.

        Raises Failed if one of them does not succeed, and TimedOut.
        """
        slug = state.declared.adapter.slug
        if state.run is None:
            state.run = state.api.send(calls.train(state.project, slug, known(state.dataset), **self.recipe(state)))
        if state.version is None:
            state.run = state.followed(calls.training_run(state.run["id"]), f"training {slug}")
            state.version = state.run["version"]
        named = known(state.version)
        state.followed(calls.version(state.named(slug), number_of(named)), f"check of {named}")


def number_of(served_name: str) -> int:
    """Return the version number in a served name: 12 in `dora.v12-0123456789ab`."""
    return int(served_name.rpartition(".v")[2].partition("-")[0])


class TheGates:
    """The step that measures the version against what the alias serves, or its base, and applies the gates."""

    def plan(self, state: State) -> Change | None:
        """Return the evaluation to run or to wait for; None if there is nothing to measure, or the gates pass.

        A version that the alias serves already is not measured. Stores in the state the newest evaluation on the data
        that succeeded or is in progress; with an alias only of those against the version that it serves. Raises Ended
        for a version that a gate refuses.
        """
        if not state.declared.is_measured:
            return None
        name = state.version or state.declared.adapter.slug
        self.alias(state)
        if state.version is None:
            return Change("run", "evaluation", name, "the version is new")
        if self.serving(state) == state.version:
            return None
        query = {"version": state.version, "dataset": str(state.dataset), "project": state.project}
        query |= {"against": self.serving(state) or ""} if self.serving(state) else {}
        state.evaluation = state.newest(
            calls.evaluations(**query), lambda row: row["status"] in ("succeeded", *UNDER_WAY)
        )
        if state.evaluation is None:
            return Change("run", "evaluation", name, f"not measured against {self.serving(state) or 'its base'}")
        if state.evaluation["status"] in UNDER_WAY:
            return Change("follow", "evaluation", name, f"{state.evaluation['id']} is in progress")
        self.judge(state)
        return None

    def alias(self, state: State) -> None:
        """Read the declared alias into the state, if it exists."""
        if state.declared.rollout and state.alias is None:
            state.alias = state.find(calls.alias(state.named(state.declared.rollout.alias)))

    def serving(self, state: State) -> str | None:
        """Return the served name of the version that the alias serves now; None without an alias."""
        return state.alias["version"] if state.alias else None

    def do(self, state: State) -> None:
        """Evaluate the version unless that is in progress, wait for the result, and apply the gates.

        Raises Ended if a gate refuses the version, Failed if the evaluation does not succeed, and TimedOut.
        """
        version = known(state.version)
        if state.evaluation is None:
            other = {"against": self.serving(state)} if self.serving(state) else {}
            state.evaluation = state.api.send(calls.evaluate(state.project, version, known(state.dataset), **other))
        state.evaluation = state.followed(calls.evaluation(state.evaluation["id"]), f"evaluation of {version}")
        self.judge(state)

    def judge(self, state: State) -> None:
        """Raise Ended when the evaluation does not meet a gate."""
        gates, metrics = state.declared.gates, (state.evaluation and state.evaluation["metrics"]) or {}
        if gates and gates.no_worse:
            require_no_worse(metrics, state.version or "", self.serving(state) or "")
        loss = metrics.get("arms", {}).get("version", {}).get("loss")
        if gates and gates.loss_below is not None and not (loss is not None and loss < gates.loss_below):
            raise Ended(
                f"gates.loss_below: the held-out loss of {state.version} is {loss}, not below {gates.loss_below}.",
                Exit.REFUSED,
            )


class TheTasks(TheGates):
    """The step that measures the version on the declared tasks of lm-eval and refuses a score below its minimum."""

    def plan(self, state: State) -> Change | None:
        """Return the tasks to run or to wait for; None if there are none or all scores suffice.

        A version that the alias serves already is not measured. Stores in the state the newest evaluation of each task.
        Raises Ended if a score is too low.
        """
        gates = state.declared.gates
        name = state.version or state.declared.adapter.slug
        self.alias(state)
        if not (gates and gates.tasks) or (state.version and self.serving(state) == state.version):
            return None
        if state.version:
            for row in state.api.rows(calls.evaluations(version=state.version, project=state.project)):
                if row["task"] and row["status"] in ("succeeded", *UNDER_WAY):
                    state.tasks.setdefault(row["task"], row)
        measured = {task for task, row in state.tasks.items() if row["status"] == "succeeded"}
        left = [gate.task for gate in gates.tasks if gate.task not in measured]
        if left:
            return Change("run", "evaluation", name, f"tasks of lm-eval: {', '.join(left)}")
        self.judge(state)
        return None

    def do(self, state: State) -> None:
        """Run the tasks that were not run yet, one after another, each to its end, then check the scores.

        Raises Ended if a score is too low or missing, Failed if a task does not succeed, and TimedOut if a
        task takes longer than the state's `timeout_s`.
        """
        version = known(state.version)
        for task in [gate.task for gate in known(state.declared.gates).tasks]:
            job = state.tasks.get(task) or state.api.send(calls.evaluate(state.project, version, task=task))
            state.tasks[task] = state.followed(calls.evaluation(job["id"]), f"task {task} of {version}")
        self.judge(state)

    def judge(self, state: State) -> None:
        """Raise Ended when a score is too low or missing."""
        for gate in known(state.declared.gates).tasks:
            require_scores(state.tasks[gate.task]["metrics"] or {}, known(state.version), gate.at_least)


class ThePolicy:
    """The step that gives the alias the declared quorum: the number of signatures that a promotion needs."""

    def plan(self, state: State) -> Change | None:
        """Return the change of the alias' quorum; None if it is as declared or there is no alias yet."""
        wanted = state.declared.gates.quorum if state.declared.gates else None
        if wanted is None or state.alias is None or state.alias["policy"].get("quorum", 0) == wanted:
            return None
        return Change("change", "alias", state.alias["name"], f"quorum {wanted}")

    def do(self, state: State) -> None:
        """Set the alias' quorum."""
        alias, gates = known(state.alias), known(state.declared.gates)
        state.alias = state.api.send(
            calls.set_policy(state.named(alias["name"]), {**alias["policy"], "quorum": gates.quorum})
        )


class TheRollout:
    """The step that opens a rollout, or creates the alias, which then serves its first version at once."""

    def plan(self, state: State) -> Change | None:
        """Return the creation of the alias or the rollout to open; None if none is needed.

        None is needed without a declared rollout, and if it is in progress or done. Raises Ended if one of this version
        failed.
        """
        wanted = state.declared.rollout
        if wanted is None:
            return None
        state.alias = state.alias or state.find(calls.alias(state.named(wanted.alias)))
        if state.alias is None:
            where = wanted.cluster or "no cluster"
            return Change("create", "alias", wanted.alias, f"it does not exist yet; served by {where}")
        if state.version is None:
            return Change("open", "rollout", wanted.alias, "the version is new")
        return self.plan_rollout(state, wanted.alias)

    def plan_rollout(self, state: State, name: str) -> Change | None:
        """Return the rollout to open; None if it is in progress or done, in which case it is stored in the state.

        Raises Ended if one of this version failed.
        """
        alias = known(state.alias)
        query = calls.rollouts(state.named(name), candidate=state.version or "")
        rollout = state.newest(query, lambda row: row["status"] not in ("draft", "discarded"))
        if alias["version"] == state.version:
            state.rollout = rollout if rollout and rollout["status"] == "promoted" else None
            return None
        if rollout and rollout["status"] in ("rolled_back", "failed"):
            reason = f" The reason was: {rollout['status_reason']}" if rollout["status_reason"] else ""
            outcome = rollout["status"].replace("_", " ")
            message = f"rollout: that of {state.version} on {name} {outcome}: change the data or the settings.{reason}"
            raise Ended(message, resource=rollout)
        if rollout and rollout["status"] != "promoted":
            state.rollout = rollout
            return None
        return Change("open", "rollout", name, f"it serves {alias['version']}")

    def do(self, state: State) -> None:
        """Create the alias if there is none, else open the rollout."""
        wanted, version = known(state.declared.rollout), known(state.version)
        if state.alias is None:
            quorum = state.declared.gates.quorum if state.declared.gates else None
            policy = {"quorum": quorum} if quorum else {}
            state.alias = state.api.send(
                calls.create_alias(state.project, wanted.alias, known(wanted.cluster), version, policy)
            )
            return
        body = wanted.model_dump(exclude_none=True)
        opened = calls.open_rollout(
            state.named(wanted.alias), version, body["steps"], wanted.reason, body["guardrails"]
        )
        state.rollout = state.api.send(opened)


STEPS: list[Step] = [
    TheLimits(),
    TheCluster(),
    TheAdapter(),
    TheData(),
    TheRanks(),
    TheVersion(),
    TheGates(),
    TheTasks(),
    ThePolicy(),
    TheRollout(),
]
