"""Things to look at on the pages."""

from __future__ import annotations

from typing import Any

from adapterhub.core.actor import Actor
from registry.models import AdapterVersion, Alias, Rollout
from tests.pages.plans import PLAN
from training.models import Dataset, RankAnalysis, RunMetric
from training.runs.launch import launch_run


def one_of_everything(alias: Alias, candidate: AdapterVersion, dataset: Dataset, by: Actor) -> dict[str, Any]:
    """Make what is missing to one of each kind; return the arguments of its pages by the name of their route."""
    alias.cluster.add_replica(url="http://127.0.0.1:1", by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 50}], reason="try", by=by)
    run = launch_run(adapter=candidate.adapter, dataset=dataset, by=by)
    for step in (1, 2, 3):
        RunMetric.objects.create(run=run, step=step, values={"loss": 3.0 / step})
    base_model = candidate.adapter.base_model
    analysis = RankAnalysis.launch(
        project=alias.project, base_model=base_model, dataset=dataset, budget={"uniform_rank": 8}, by=by
    )
    RankAnalysis.objects.filter(pk=analysis.pk).update(plan=PLAN)
    return {
        "overview": [],
        "adapters": [],
        "adapter": ["dora"],
        "version": ["dora", 1],
        "alias": ["compliance"],
        "rollouts": [],
        "rollout": [rollout.pk],
        "clusters": [],
        "cluster": [alias.cluster.slug],
        "datasets": [],
        "dataset": [dataset.pk],
        "training-runs": [],
        "new-training-run": [],
        "training-run": [run.pk],
        "rank-analyses": [],
        "new-rank-analysis": [],
        "rank-analysis": [analysis.pk],
        "audit": [],
    }
