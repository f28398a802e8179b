"""Several datasets in one run: refused or recorded, told at the preflight, and the same by REST, file and form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from adapterhub.core.errors import Invalid
from registry.models import Adapter, BaseModel
from tests.builders import write_jsonl
from tests.tiny_model import save_base_model
from training.models import Dataset, TrainingRun
from training.models.mixture import Mixed
from training.planning import preflight
from training.runs import specification
from training.runs.launch import launch_run


@pytest.fixture
def adapter(project: Project, alice: User) -> Adapter:
    model = BaseModel.objects.create(slug="talking", source="talking")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return Adapter.objects.create(project=project, base_model=model, slug="spoken")


def uploaded(project: Project, name: str, rows: list[Any], alice: User, folder: Path) -> Dataset:
    file = write_jsonl(folder / f"{name}.jsonl", rows)
    return Dataset.create(project=project, name=name, file=file, filename=file.name, by=alice.as_actor())


@pytest.fixture
def support(project: Project, alice: User, tmp_path: Path) -> Dataset:
    rows = [{"prompt": f"support {n}", "completion": "the bank"} for n in range(100)]
    return uploaded(project, "support", rows, alice, tmp_path)


@pytest.fixture
def legal(project: Project, alice: User, tmp_path: Path) -> Dataset:
    rows = [{"prompt": f"legal {n}", "completion": "under article of the law"} for n in range(20)]
    return uploaded(project, "legal", rows, alice, tmp_path)


@pytest.fixture
def run(adapter: Adapter, support: Dataset, legal: Dataset, alice: User) -> TrainingRun:
    chosen = {"steps": 15, "batch_size": 4, "max_length": 32}
    return launch_run(
        by=alice.as_actor(), adapter=adapter, dataset=support, mixture=[Mixed(legal, 0.5)], hyperparameters=chosen
    )


def test_the_lineage_and_the_run_file_name_every_dataset(run: TrainingRun, legal: Dataset, tmp_path: Path) -> None:
    run.refresh_from_db()
    assert run.lineage()["mixture"] == [{"dataset": legal.digest, "weight": 0.5}]
    record = run.recipe(tmp_path)
    (part,) = record["mixture"]
    assert part["weight"] == 0.5
    assert part["name"] == f"legal ({legal.pk})"
    assert len(Path(part["train"]).read_text().splitlines()) == 18
    assert len(Path(part["eval"]).read_text().splitlines()) == 2


def test_a_validation_dataset_stands_for_all_held_out_rows(
    run: TrainingRun, project: Project, alice: User, tmp_path: Path
) -> None:
    own = uploaded(project, "own", [{"prompt": f"own {n}", "completion": "risk"} for n in range(9)], alice, tmp_path)
    run.validation_dataset = own
    record = run.recipe(tmp_path)
    assert "eval" not in record["mixture"][0]
    assert len(Path(record["eval"]).read_text().splitlines()) == 9


def test_the_preflight_tells_rows_and_tokens_of_each(run: TrainingRun, support: Dataset, legal: Dataset) -> None:
    forecast = preflight.data(run)
    first, second = forecast["datasets"]
    assert (first["dataset"], second["dataset"]) == (support.pk, legal.pk)
    assert (first["rows"], second["rows"], forecast["rows"]) == (90, 18, 108)
    # 60 rows, two of three from support: 40 of 90 and 20 of 18; 5 and 8 tokens each.
    assert (first["reads"], second["reads"]) == (0.44, 1.11)
    assert (first["tokens"], second["tokens"]) == (40 * 5, 20 * 8)
    assert preflight.planned_tokens(run) == 360
    assert "legal: 33 % of the rows, 1.1 times its 18, about 160 tokens." in forecast["text"]


def test_an_epoch_of_a_mixture_has_read_every_row(run: TrainingRun) -> None:
    run.hyperparameters["epochs"] = 2
    parts = preflight.parts_of(run)
    assert parts
    assert preflight.planned_rows(run, parts) == 2 * 135


def test_a_dataset_without_a_trainable_row_is_named(
    run: TrainingRun, project: Project, alice: User, tmp_path: Path
) -> None:
    long = [{"prompt": f"{n} " + "bank " * 60, "completion": "law"} for n in range(20)]
    run.mixture = [{"dataset": uploaded(project, "long", long, alice, tmp_path).pk, "weight": 1.0}]
    with pytest.raises(Invalid, match="No row of long can be trained"):
        preflight.require_trainable(run)


@pytest.mark.parametrize(
    ("weight", "twice", "field"),
    [(0.0, False, "mixture.0.weight"), (float("nan"), False, "mixture.0.weight"), (1.0, True, "mixture.1.dataset")],
)
def test_what_cannot_be_mixed_is_refused(
    weight: float, twice: bool, field: str, adapter: Adapter, support: Dataset, legal: Dataset, alice: User
) -> None:
    mixture = [Mixed(legal, weight)] * (2 if twice else 1)
    with pytest.raises(Invalid) as caught:
        TrainingRun.planned(by=alice.as_actor(), adapter=adapter, dataset=support, mixture=mixture)
    assert caught.value.field == field


def test_preference_pairs_and_other_projects_are_refused(
    adapter: Adapter, support: Dataset, project: Project, alice: User, tmp_path: Path
) -> None:
    rows = [{"prompt": f"a {n}", "chosen": "bank", "rejected": "risk"} for n in range(20)]
    pairs = uploaded(project, "pairs", rows, alice, tmp_path)
    elsewhere = Project.objects.create(slug="elsewhere", name="Elsewhere")
    foreign = Dataset.objects.create(project=elsewhere, name="foreign", size_bytes=1, status="rejected")
    for dataset, text in ((pairs, "preference pairs"), (foreign, "another project")):
        with pytest.raises(Invalid, match=text):
            TrainingRun.planned(by=alice.as_actor(), adapter=adapter, dataset=support, mixture=[Mixed(dataset, 1.0)])


def test_rest_takes_and_tells_a_mixture(client: Client, run: TrainingRun, legal: Dataset, alice: User) -> None:
    client.force_login(alice)
    wanted = [{"dataset": legal.pk, "weight": 0.5}]
    url = reverse("api:training-run-detail", args=[run.pk])
    assert client.get(url).json()["mixture"] == wanted
    body = specification.body_of(run)
    assert body["mixture"] == wanted
    posted = client.post(reverse("api:training-run-list"), json.dumps(body), content_type="application/json")
    assert posted.json()["mixture"] == wanted
    wrong = {**body, "mixture": [{"dataset": 10**6, "weight": 0.5}]}
    refused = client.post(reverse("api:training-run-list"), json.dumps(wrong), content_type="application/json")
    assert "There is no dataset 1000000" in refused.json()["detail"]
    page = client.get(reverse("training-run", args=[run.pk])).content.decode()
    assert "legal</a> with weight 0.5" in page


@pytest.mark.parametrize(
    ("line", "error"),
    [("legal: 0.5", ""), ("legal", "Write NAME: WEIGHT"), ("nothing: 1", "no ready dataset &#x27;nothing&#x27;")],
)
def test_the_form_takes_names_and_weights(
    line: str, error: str, client: Client, run: TrainingRun, legal: Dataset, alice: User
) -> None:
    client.force_login(alice)
    form = {**run.hyperparameters, "adapter": run.adapter_id, "dataset": run.dataset_id, "method": "lora"}
    page = client.post(reverse("new-training-run"), {**form, "mixture": line, "check": "1"}).content.decode()
    if error:
        assert error in page
    else:
        assert "legal: 33 % of the rows" in page
        assert f"- dataset: {legal.pk}" in page
    cloned = client.get(reverse("new-training-run"), {"clone": run.pk}).content.decode()
    assert f"{legal.pk}: 0.5" in cloned
