"""Roles in a project and the things of other projects."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.accounts.models import Membership, Project, User
from adapterhub.core.errors import Invalid
from registry.models import Adapter, BaseModel
from tests.builders import rows, write_jsonl
from training.models import Dataset, RankAnalysis
from training.runs.launch import launch_run


def test_two_roles_show_the_project_once(project: Project, alice: User) -> None:
    Membership.objects.create(project=project, user=alice, role=Membership.Role.OPERATOR)
    assert list(Project.objects.visible_to(alice)) == [project]


@pytest.fixture
def foreign(charlie: User, tmp_path: Path) -> Dataset:
    other = Project.objects.get(slug="other")
    file = write_jsonl(tmp_path / "foreign.jsonl", rows())
    return Dataset.create(project=other, name="theirs", file=file, filename="foreign.jsonl", by=charlie.as_actor())


def test_no_verb_takes_a_dataset_of_another_project(
    foreign: Dataset, adapter: Adapter, base_model: BaseModel, alice: User
) -> None:
    with pytest.raises(Invalid, match="no such dataset"):
        launch_run(adapter=adapter, dataset=foreign, by=alice.as_actor())
    with pytest.raises(Invalid, match="no such dataset"):
        RankAnalysis.launch(
            project=adapter.project,
            base_model=base_model,
            dataset=foreign,
            by=alice.as_actor(),
            budget={"uniform_rank": 8},
        )
