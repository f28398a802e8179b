"""The main job of AdapterHub, step by step on real input, through the interfaces that customers use."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adapterhub.demo.api_client import Answer, Hub, Json, Person, StepFailed, wait_for
from adapterhub.embedded.options import DEFAULT_MODEL

PROJECT, ADAPTER, ALIAS, CLUSTER = "european-law", "eu-compliance", "compliance", "laptop"
PROTECTED = {"quorum": 1}
RANK = 16
USERS = [f"user-{number:02}" for number in range(1, 21)]
TOKENS = 20
HYPERPARAMETERS = {
    "rank": RANK,
    "steps": 40,
    "batch_size": 4,
    "max_length": 84,
    "learning_rate": 3e-3,
    "warmup_steps": 4,
    "scheduler": "cosine",
    "checkpoint_steps": 20,
    "eval_tokens": 4400,
}
# A small probe: one learning rate and few steps, so that it takes about 40 s on two free cores.
ANALYSIS = {
    "preset": "default",
    "budget": {"uniform_rank": RANK},
    "rank_max": 32,
    "quantum": 4,
    "samples": 8,
    "max_length": 128,
    "settings": {"probe_rates": [4e-3], "probe_steps": 4},
}
MIN_STEPS, MIN_TRAINED, MIN_EVALUATED, MIN_COMPLETION = 40, 10_000, 4_000, 16


@dataclass
class Record:
    """The record of the demo, written to demo.json in the data folder."""

    versions: list[Json] = field(default_factory=list)
    requests: list[Json] = field(default_factory=list)
    audit: Json = field(default_factory=dict)


class Walkthrough:
    """The demo, a method for each step. A step that fails raises StepFailed."""

    def __init__(self, hub: Hub, people: dict[str, Person], console: Console, replicas: list[str]) -> None:
        self.hub = hub
        self.people = people
        self.alice, self.olga = people["alice"].sign_in(), people["olga"].sign_in()
        self.console = console
        self.replicas = replicas
        self.record = Record()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False)

    def step(self, number: int, text: str) -> None:
        """Print the heading of a step."""
        self.console.rule(f"[bold]{number}. {text}", align="left")

    def run(self, dataset_file: Path) -> Record:
        """Run all steps, the whole life of an adapter, and return the record."""
        base = self.register_base_model()
        dataset = self.upload_dataset(dataset_file)
        self.declare_serving()
        analysis = self.analyse(dataset)
        uniform = self.train(dataset, None, "4", "Train v1: the same rank everywhere")
        planned = self.train(dataset, analysis, "5", "Train v2: the ranks that TARS planned")
        self.compare(base, analysis, uniform, planned)
        self.go_live(uniform)
        self.ask_everybody("before", {uniform})
        rollout = self.start_rollout(planned)
        self.ask_everybody("during", {uniform, planned})
        self.promote(rollout, planned)
        self.ask_everybody("promoted", {planned})
        self.roll_back(rollout, uniform)
        self.ask_everybody("rolled back", {uniform})
        self.check_arms()
        self.audit()
        return self.record

    def register_base_model(self) -> Json:
        """Register the base model unless that was done, wait for its check, and return it.

        Raises StepFailed if it is rejected.
        """
        self.step(1, "Base model")
        if not self.hub.exists(f"base-models/{DEFAULT_MODEL}/"):
            self.hub.post("base-models/", {"slug": DEFAULT_MODEL, "source": DEFAULT_MODEL})
        model = wait_for(lambda: self.checked_model(), "The check of the base model", 120)
        if model["status"] != "ready":
            raise StepFailed(f"The base model was rejected: {model['message']}")
        self.say(f"{DEFAULT_MODEL}: {model['parameters'] / 1e6:.0f} M parameters, sha256 {model['digest'][:12]}")
        return model

    def checked_model(self) -> Json | None:
        """Return the base model, or None while it is being checked."""
        model: Json = self.hub.get(f"base-models/{DEFAULT_MODEL}/")
        return None if model["status"] == "checking" else model

    def upload_dataset(self, file: Path) -> Json:
        """Upload the dataset, show its first row, and return it."""
        self.step(2, "Alice, trainer: a dataset of DORA, GDPR and the EU AI Act")
        dataset: Json = self.alice.upload("datasets/", {"project": PROJECT, "name": "European law"}, file)
        splits = dataset["splits"]
        self.say(f"{dataset['rows']} parts of articles: {splits['train']} to train on, {splits['eval']} held out")
        row = self.hub.get(f"datasets/{dataset['id']}/preview/")["rows"][0]
        self.say(f"[dim]{row['prompt']}{row['completion'][:110]}...")
        return dataset

    def declare_serving(self) -> None:
        """Create the adapter, the cluster, and entries for the running replicas, if they are missing."""
        if not self.hub.exists(f"adapters/{ADAPTER}/"):
            body = {
                "project": PROJECT,
                "slug": ADAPTER,
                "base_model": DEFAULT_MODEL,
                "tags": ["eu"],
                "description": "Answers in the words of European financial and AI regulation.",
            }
            self.alice.post("adapters/", body)
        if not self.hub.exists(f"clusters/{CLUSTER}/"):
            self.olga.post("clusters/", {"project": PROJECT, "slug": CLUSTER, "base_model": DEFAULT_MODEL})
        known = {replica["url"] for replica in self.hub.all("replicas/")}
        for url in self.replicas:
            if url not in known:
                self.olga.post("replicas/", {"cluster": CLUSTER, "url": url})

    def analyse(self, dataset: Json) -> Json:
        """Run the rank analysis, or take one of an earlier demo, show its plan, and return it.

        Raises StepFailed unless the plan has three different ranks.
        """
        self.step(3, "TARS: plan the rank of every layer before training")
        done = self.reusable("rank-analyses/", dataset, planned_alike)
        body = {"project": PROJECT, "base_model": DEFAULT_MODEL, "dataset": dataset["id"], **ANALYSIS}
        analysis = done or self.follow("rank-analyses/", body, "TARS")
        ranks = sorted({module["rank"] for module in analysis["modules"]})
        self.say(
            f"Ranks {', '.join(map(str, ranks))} over {len(analysis['modules'])} modules, "
            f"{analysis['parameters']:,} of {analysis['budget']['parameters']:,} parameters"
        )
        self.say(f"[dim]{analysis['verdict_text']}")
        require(len(ranks) >= 3, f"the plan has the ranks {ranks}, fewer than three different ones")
        return analysis

    def reusable(self, path: str, dataset: Json, fits: Any) -> Json | None:
        """Return a succeeded job on this dataset for which `fits` is true, from an earlier demo; None without one."""
        jobs = (job for job in self.hub.all(path) if job["status"] == "succeeded" and job["dataset"] == dataset["id"])
        return next((job for job in jobs if fits(job)), None)

    def train(self, dataset: Json, analysis: Json | None, number: str, title: str) -> str:
        """Train a version, or reuse that of an earlier demo, and return its served name.

        Raises StepFailed if it does not succeed, is too small, or the held-out loss did not fall.
        """
        self.step(int(number), title)
        plan = analysis and analysis["id"]
        done = self.reusable("training-runs/", dataset, lambda job: job["rank_analysis"] == plan)
        body = {
            "project": PROJECT,
            "adapter": ADAPTER,
            "dataset": dataset["id"],
            "rank_analysis": plan,
            "hyperparameters": HYPERPARAMETERS,
        }
        run = done or self.follow("training-runs/", body, "Training")
        version = self.version(run["version"])
        metrics = version["metrics"]
        self.say(
            f"{run['version']}: held-out loss {metrics['loss_before']:.3f} -> {metrics['loss_after']:.3f} over "
            f"{metrics['eval_tokens']:,} tokens of {metrics['eval_rows']:,} rows, {version['parameters']:,} parameters"
        )
        self.keep_version(version)
        return str(run["version"])

    def version(self, served_name: str) -> Json:
        """Return the version with this served name."""
        versions = self.hub.all(f"adapters/{ADAPTER}/versions/")
        return next(version for version in versions if version["served_name"] == served_name)

    def keep_version(self, version: Json) -> None:
        """Add the version to the record.

        Raises StepFailed if too little was trained or measured, or the loss did not fall.
        """
        metrics = version["metrics"]
        require(metrics["steps"] >= MIN_STEPS, f"only {metrics['steps']} steps were trained")
        require(metrics["train_tokens"] >= MIN_TRAINED, f"only {metrics['train_tokens']} tokens were trained")
        require(metrics["eval_tokens"] >= MIN_EVALUATED, f"only {metrics['eval_tokens']} tokens were evaluated")
        require(metrics["loss_after"] < metrics["loss_before"], "the held-out loss did not fall")
        self.record.versions.append(
            {
                "served_name": version["served_name"],
                "parameters": version["parameters"],
                "loss_before": metrics["loss_before"],
                "loss_after": metrics["loss_after"],
                "rank_pattern": version["ranks"],
            }
        )

    def follow(self, path: str, body: Json, title: str) -> Json:
        """Queue a job, show its progress until it ends, and return it. Raises StepFailed when it did not succeed."""
        job = self.alice.post(path, body)
        with self.bar() as bar:
            task = bar.add_task(title, total=None, note="queued")

            def poll() -> Json | None:
                job_state: Json = self.hub.get(f"{path}{job['id']}/")
                progress = job_state["progress"]
                loss = progress.get("loss")
                note = f"loss {loss:.3f}" if loss else job_state["status"]
                bar.update(task, completed=progress.get("step", 0), total=progress.get("total"), note=note)
                return None if job_state["status"] in ("queued", "running", "stopping") else job_state

            ended = wait_for(poll, title, 1800)
        if ended["status"] != "succeeded":
            raise StepFailed(f"{title} ended as {ended['status']} ({ended['reason']}): {ended['message']}")
        return ended

    @contextmanager
    def bar(self) -> Iterator[Progress]:
        """Yield a progress bar on the console."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            yield bar

    def compare(self, base: Json, analysis: Json, uniform: str, planned: str) -> None:
        """Print the two versions side by side. Raises StepFailed if the planned one has more parameters."""
        table = Table("version", "parameters", "loss before", "loss after", "ranks")
        for version in self.record.versions:
            ranks = sorted(set(version["rank_pattern"].values()))
            table.add_row(
                version["served_name"],
                f"{version['parameters']:,}",
                f"{version['loss_before']:.3f}",
                f"{version['loss_after']:.3f}",
                ", ".join(map(str, ranks)),
            )
        self.console.print(table)
        parameters = [version["parameters"] for version in self.record.versions]
        require(parameters[1] <= parameters[0], "the planned version has more parameters than the uniform one")

    def go_live(self, version: str) -> None:
        """Serve the first version under the protected alias, wait until every replica has it, and show an answer."""
        self.step(6, f"Olga, operator: v1 live under the protected alias {ALIAS!r} on {len(self.replicas)} replicas")
        if self.hub.exists(f"aliases/{ALIAS}/"):
            self.olga.rest.patch(f"aliases/{ALIAS}/", json={"policy": PROTECTED})
            self.start_again(version)
        else:
            body = {"project": PROJECT, "name": ALIAS, "cluster": CLUSTER, "version": version, "policy": PROTECTED}
            self.olga.post("aliases/", body)
        self.wait_until_loaded(version)
        answer = self.hub.complete(ALIAS, "DORA, Article 19 (1): ", "somebody", TOKENS)
        self.say(f"[dim]X-Adapter-Version: {answer.version}   X-Rollout-Arm: {answer.arm}")
        self.say(f"DORA, Article 19 (1): [italic]{answer.text.strip()}")

    def start_again(self, version: str) -> None:
        """End the rollouts of an earlier demo and move the alias back to `version` by a signed rollout."""
        for rollout in self.hub.all("rollouts/"):
            if rollout["alias"] == ALIAS and rollout["ended_at"] is None and rollout["status"] != "draft":
                self.olga.post(f"rollouts/{rollout['id']}/rollback/", {"reason": "The demo starts again."})
        if self.hub.get(f"aliases/{ALIAS}/")["version"] != version:
            rollout = self.open_rollout(version, "The demo starts again.")
            self.olga.post(f"rollouts/{rollout['id']}/promote/", {"reason": "The demo starts again."})

    def wait_until_loaded(self, version: str) -> None:
        """Wait until every replica has loaded the version. Raises StepFailed after 120 s."""

        def poll() -> Json | None:
            state = self.hub.get(f"clusters/{CLUSTER}/state/")
            loaded = [row for row in state if row["is_healthy"] and version in row["observed"]]
            return {"replicas": loaded} if len(loaded) >= len(self.replicas) else None

        wait_for(poll, f"Loading {version} on {len(self.replicas)} replicas", 120)

    def start_rollout(self, candidate: str) -> Json:
        """Open the rollout of the second version to half of the users, wait until the router follows it, and return it.

        Shows before that Olga may not move the alias without a signature; Bob then signs the rollout that she opened.
        """
        self.step(7, "Roll v2 out to half of the users, sticky: Olga asks, Bob signs the plan")
        self.say(f"Olga alone: {self.olga.refused(*self.move_to(candidate))}")
        rollout = self.open_rollout(candidate, "TARS plan against uniform.")
        self.wait_for_router({candidate, self.record.versions[0]["served_name"]})
        return rollout

    def open_rollout(self, candidate: str, reason: str) -> Json:
        """Open a rollout to half of the users, have it signed, wait until it runs, and return it.

        Raises StepFailed if it is refused or does not run within 120 s.
        """
        body = {"alias": ALIAS, "candidate": candidate, "steps": [{"weight": 50}], "reason": reason}
        rollout: Json = self.olga.post("rollouts/", body)
        self.approve(rollout)

        def running() -> Json | None:
            state: Json = self.hub.get(f"rollouts/{rollout['id']}/")
            return state if state["status"] == "running" else None

        return wait_for(running, "Loading the candidate on every replica", 120)

    def promote(self, rollout: Json, candidate: str) -> None:
        """Promote the candidate, as its signed plan allows, and wait until the router serves it alone."""
        self.step(8, "Promote v2 under the protected alias, as the signed plan allows")
        self.olga.post(f"rollouts/{rollout['id']}/promote/", {"reason": "No guardrail was touched."})
        self.wait_for_router({candidate})

    def move_to(self, version: str) -> tuple[str, Json]:
        """Return the path and the body of a call that would move the alias without a signature."""
        serving = self.hub.get(f"aliases/{ALIAS}/")["version"]
        return f"aliases/{ALIAS}/move/", {"version": version, "expected_version": serving, "reason": "Without Bob."}

    def approve(self, rollout: Json) -> None:
        """Show that the trainer may not sign the rollout's request, then have Bob, who did not open it, sign it."""
        waiting = self.hub.all("approvals/")
        request = next(row for row in waiting if row["rollout"] == rollout["id"] and row["status"] == "pending")
        path = f"approvals/{request['id']}/approve/"
        body = {"reason": "The held-out loss fell.", "seen": request["bound"]}
        self.say(f"Alice, who trained it: {self.people['alice'].sign_in().refused(path, body)}")
        signed = self.people["bob"].sign_in().post(path, body)
        self.say(f"Bob signs for {request['bound'][:12]}: {signed['status']}")
        require(signed["status"] == "approved", "Bob's signature did not approve the promotion")

    def roll_back(self, rollout: Json, stable: str) -> None:
        """Roll the promotion back, and wait until the router serves the stable version again."""
        self.step(9, "Roll back to v1 in one call")
        self.olga.post(f"rollouts/{rollout['id']}/rollback/", {"reason": "The demo shows the way back."})
        self.wait_for_router({stable})

    def wait_for_router(self, versions: set[str]) -> None:
        """Ask the router until exactly these versions answer six users. Raises StepFailed after 30 s."""

        def poll() -> Json | None:
            answers = self.ask(USERS[:6], 1)
            return {"ok": True} if {answer.version for answer in answers} == versions else None

        wait_for(poll, "The router's switch", 30)

    def ask(self, users: list[str], tokens: int) -> list[Answer]:
        """Send the prompts of all users at the same time; return the answers in the users' order."""
        with ThreadPoolExecutor(10) as pool:
            return list(pool.map(lambda user: self.hub.complete(ALIAS, prompt_of(user), user, tokens), users))

    def ask_everybody(self, phase: str, allowed: set[str]) -> None:
        """Send the requests of all 20 users, record the answers and show which version answered whom.

        Raises StepFailed unless exactly the `allowed` versions answered, each with enough tokens.
        """
        answers = self.ask(USERS, TOKENS)
        for answer in answers:
            require(answer.version in allowed, f"{answer.version} answered {answer.user} in phase {phase}")
            require(answer.tokens >= MIN_COMPLETION, f"{answer.user} got only {answer.tokens} tokens")
            fields = {name: value for name, value in asdict(answer).items() if name in ("user", "version", "arm")}
            self.record.requests.append({"phase": phase, **fields})
        require({answer.version for answer in answers} == allowed, f"phase {phase} was answered by one version only")
        table = Table("version", "arm", "users", title=f"Who answered: {phase}", title_justify="left")
        for version, arm in sorted({(answer.version, answer.arm) for answer in answers}):
            users = [answer.user[-2:] for answer in answers if (answer.version, answer.arm) == (version, arm)]
            table.add_row(version, arm, " ".join(users))
        self.console.print(table)

    def check_arms(self) -> None:
        """Raise StepFailed unless every user had an arm during the rollout, and none has one after the rollback."""
        during = {row["user"]: row["arm"] for row in self.record.requests if row["phase"] == "during"}
        again = {answer.user: answer.arm for answer in self.ask(USERS[:4], 1)}
        require(set(again.values()) == {"none"}, "an arm is named after the rollback")
        require(set(during.values()) <= {"candidate", "control", "stable"}, "a user had no arm during the rollout")

    def audit(self) -> None:
        """Show the latest events of the audit trail and verify it. Raises StepFailed if it does not hold."""
        self.step(10, "The audit trail of all this")
        verdict = self.hub.get("audit/verify/", project=PROJECT)
        for event in reversed(self.hub.all("audit/events/", project=PROJECT)[:12]):
            self.say(
                f"[dim]{event['at'][11:19]}[/] {event['sequence']:>4}  {event['tag']:<26} {event['object_name'][:60]}"
            )
        self.record.audit = {"events": verdict["events"], "verified": verdict["ok"]}
        require(verdict["ok"], f"the audit trail does not hold: {verdict['faults']}")
        self.say(f"{verdict['events']} events, the hash chain holds.")


def prompt_of(user: str) -> str:
    """Return the user's prompt, a different article for each user."""
    return f"GDPR, Article {int(user[-2:]) + 4} (1): "


def planned_alike(job: Json) -> bool:
    """Return True if an analysis has the rank and preset that the demo would request."""
    return bool(job["budget"].get("value") == RANK and job["preset"] == ANALYSIS["preset"])


def require(holds: bool, otherwise: str) -> None:
    """Raise StepFailed, with `otherwise` as the reason, unless the claim holds."""
    if not holds:
        raise StepFailed(f"The demo stops: {otherwise}.")
