"""The proposals of forms, the words of switches, prompts and times, and the next step that a page offers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django import forms
from django.template import Context, Template
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from adapterhub.audit.access_log import observe, seal
from adapterhub.audit.tags import Tag
from adapterhub.charts import in_digits
from adapterhub.core.durations import in_words as duration
from adapterhub.core.errors import InvalidTransition
from adapterhub.jobs.models import JobStatus
from adapterhub.templatetags.adapterhub import plainly
from registry.models import Adapter, AdapterVersion, Alias, Approval, BaseModel, Rollout
from tests.builders import rows, write_jsonl
from tests.builders.rollouts import opened
from tests.pages.plans import PLAN
from training.models import Dataset, RankAnalysis, TrainingRun
from training.models.hyperparameters import TABLE
from training.pages.fields import PromptsField
from training.pages.forms import RunForm
from training.runs.launch import launch_run
from training.runs.specification import body_of


@pytest.fixture(autouse=True)
def signed_in(alice: User, client: Client) -> None:
    client.force_login(alice)


def chosen(page: str, name: str) -> str:
    """The value that the select of this name shows."""
    options = re.search(rf'<select name="{name}".*?</select>', page, re.S)[0]
    selected = re.search(r'value="([^"]*)" selected', options)
    return selected[1] if selected else ""


def page_of(client: Client, path: str) -> str:
    return str(client.get(path).content.decode())


def test_the_only_adapter_base_model_and_dataset_are_chosen(client: Client, adapter: Adapter, dataset: Dataset) -> None:
    page = page_of(client, "/training/new/")
    assert (chosen(page, "adapter"), chosen(page, "dataset")) == (str(adapter.pk), str(dataset.pk))
    page = page_of(client, "/rank-analyses/new/")
    assert (chosen(page, "base_model"), chosen(page, "dataset")) == (str(adapter.base_model_id), str(dataset.pk))


def test_of_two_adapters_none_is_chosen_for_a_person(
    client: Client, adapter: Adapter, dataset: Dataset, alice: User
) -> None:
    Adapter.create(project=adapter.project, slug="second", base_model=adapter.base_model, by=alice.as_actor())
    assert chosen(page_of(client, "/training/new/"), "adapter") == ""
    assert chosen(page_of(client, f"/training/new/?adapter={adapter.pk}"), "adapter") == str(adapter.pk)


def test_ranks_are_planned_for_the_dataset_of_the_page(
    client: Client, adapter: Adapter, dataset: Dataset, alice: User, tmp_path: Path
) -> None:
    file = write_jsonl(tmp_path / "other.jsonl", rows(60))
    other = Dataset.create(
        project=dataset.project, name="other", file=file, filename="other.jsonl", by=alice.as_actor()
    )
    link = re.search(r'href="(/rank-analyses/new/[^"]*)">Plan ranks first', page_of(client, f"/datasets/{other.pk}/"))
    assert chosen(page_of(client, link[1]), "dataset") == str(other.pk)


SWITCHES = ("rslora", "packing", "recompute", "sharded", "as_chat")


def test_what_is_either_on_or_off_is_a_switch(client: Client, adapter: Adapter, dataset: Dataset) -> None:
    page = page_of(client, "/training/new/")
    assert re.findall(r'<input type="checkbox" name="(\w+)" role="switch"', page) == list(SWITCHES)
    assert not re.search(r'helptext">\s*1: ', page)


@pytest.mark.parametrize(("posted", "value"), [("on", 1), ("1", 1), ("0", 0), (None, 0)])
def test_a_switch_gives_the_number_of_the_table(
    project: Project, adapter: Adapter, dataset: Dataset, posted: str | None, value: int
) -> None:
    fields = {name: str(entry.default) for name, entry in TABLE.items() if name not in SWITCHES}
    form = RunForm(
        {**fields, "adapter": adapter.pk, "dataset": dataset.pk, "method": "lora"}
        | ({"recompute": posted} if posted is not None else {}),
        projects=Project.objects.all(),
    )
    assert form.is_valid(), form.errors
    assert form.hyperparameters()["recompute"] == value


def test_a_cloned_run_keeps_its_switches(client: Client, adapter: Adapter, dataset: Dataset, alice: User) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor(), hyperparameters={"recompute": 1})
    page = page_of(client, f"/training/new/?clone={run.pk}")
    boxes = dict(re.findall(r'<input type="checkbox" name="(\w+)" role="switch"([^>]*)>', page))
    assert [name for name in SWITCHES if "checked" in boxes[name]] == ["recompute"]


def test_a_runs_configuration_stands_in_the_order_of_the_form(
    client: Client, adapter: Adapter, dataset: Dataset, alice: User
) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    page = page_of(client, f"/training/{run.pk}/")
    names = [name.replace("_", " ") for name in TABLE]
    places = [page.index(f"<dt>{name}</dt>") for name in names]
    assert places == sorted(places)
    assert re.search(r"<dt>packing</dt>\s*<dd>off\b", page)


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one: a\ntwo: b", {"one": "a", "two": "b"}),
        ("one: a\n  b\n    c\ntwo: d", {"one": "a\nb\n  c", "two": "d"}),
        ("one: a\n\n\ntwo: b", {"one": "a", "two": "b"}),
        ("", {}),
    ],
)
def test_a_prompt_may_hold_line_breaks(text: str, prompts: dict[str, str]) -> None:
    field = PromptsField(required=False)
    assert field.clean(text) == prompts
    assert field.clean(field.prepare_value(prompts)) == prompts


def test_a_line_without_a_name_is_refused() -> None:
    with pytest.raises(forms.ValidationError, match="Write NAME: PROMPT"):
        PromptsField().clean("  no name\n")


def finished(adapter: Adapter, dataset: Dataset, alice: User, version: AdapterVersion | None) -> TrainingRun:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    TrainingRun.objects.filter(pk=run.pk).update(
        status=JobStatus.SUCCEEDED, version=version, loss_before=2.0, loss_after=1.0
    )
    return run


def test_after_a_success_a_run_offers_the_rollout(
    client: Client, adapter: Adapter, dataset: Dataset, alice: User, version: AdapterVersion
) -> None:
    run = finished(adapter, dataset, alice, version)
    page = page_of(client, f"/training/{run.pk}/")
    link = re.search(r'href="([^"]+)">Roll it out', page)[1]
    assert link.endswith("/v1/#roll-out")
    assert 'id="roll-out"' in page_of(client, link)


def test_the_overview_offers_what_was_lately_promoted_and_what_can_be_trained(
    client: Client, alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    by = alice.as_actor()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    Rollout.objects.filter(pk=rollout.pk).update(status="promoted", ended_at=now())
    page = page_of(client, "/")
    assert f'href="/rollouts/{rollout.pk}/"' in page
    assert f'href="/training/new/?adapter={alias.version.adapter_id}">dora' in page


def planned(dataset: Dataset, adapter: Adapter, alice: User) -> RankAnalysis:
    analysis = RankAnalysis.launch(
        project=dataset.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 4},
        by=alice.as_actor(),
    )
    plan = {**PLAN, "start_values": "start_values.safetensors"}
    RankAnalysis.objects.filter(pk=analysis.pk).update(plan=plan, status=JobStatus.SUCCEEDED)
    return RankAnalysis.objects.get(pk=analysis.pk)


def test_the_preflight_counts_the_parameters_of_the_plan(
    client: Client, adapter: Adapter, dataset: Dataset, alice: User
) -> None:
    analysis = planned(dataset, adapter, alice)
    run = TrainingRun.planned(adapter=adapter, dataset=dataset, by=alice.as_actor(), rank_analysis=analysis)
    assert run.planned_parameters() == PLAN["parameters"]
    body: dict[str, Any] = body_of(run)
    assert not {"rank", "init"} & set(body["hyperparameters"])
    assert body["start_values"] is True


def test_times_have_one_form(client: Client) -> None:
    at = now().replace(year=2026, month=3, day=1, hour=22, minute=30)
    render = Template('{% load adapterhub %}{% moment at %}|{% moment at "day" %}|{% ago at %}').render
    minute, day, ago = render(Context({"at": at})).split("|")
    assert (minute.count("1 Mar 2026, 22:30 UTC"), day.count(">1 Mar 2026<"), ago.count('data-shape="ago"')) == (
        1,
        1,
        1,
    )


def test_the_latest_changes_are_no_reads(client: Client, project: Project, alias: Alias, alice: User) -> None:
    for number in range(20):
        observe(Tag.AUDIT_READ, by=alice.as_actor(), project=project, resource=f"/audit/{number}/")
    seal()
    page = page_of(client, "/")
    assert "audit:read" not in page.partition("Latest changes")[2]
    assert "compliance" in page.partition("Latest changes")[2]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (duration(80), "80 s"),
        (duration(14_400), "4 h"),
        (duration(12_000), "3 h 20 min"),
        (in_digits(2260.4), "2,260"),
        (in_digits(0.000395), "0.000395"),
        (plainly(None), "none"),
        (plainly(False), "no"),
        (plainly("2026-11-30T14:49:42.750369+00:00"), "30 Nov 2026, 14:49:42 UTC"),
        (plainly(0.02), "0.02"),
    ],
)
def test_durations_numbers_and_facts_are_written_for_people(written: str, text: str) -> None:
    assert written == text


def test_the_navigation_marks_the_page_and_the_section_of_a_page_below_it(adapter: Adapter, client: Client) -> None:
    def marked(path: str) -> list[tuple[str, str]]:
        page = page_of(client, path).partition("</nav>")[0]
        return re.findall(r'<a href="([^"]*)" aria-current="(\w+)">', page)

    assert marked("/") == [("/", "page")]
    assert marked("/adapters/") == [("/adapters/", "page")]
    assert marked("/adapters/dora/") == marked("/adapters/new/") == [("/adapters/", "true")]


def test_a_select_in_which_nothing_is_chosen_says_so(client: Client, base_model: BaseModel, alice: User) -> None:
    client.force_login(alice)
    BaseModel.objects.create(slug="other", source="other", status="ready", digest="0" * 64)
    page = client.get("/adapters/new/").content.decode()
    assert '<option value="" selected>choose one</option>' in page
    assert "------" not in page


def test_a_state_stands_in_a_sentence_as_a_word(
    client: Client, alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    rollout = opened(alias, candidate, alice)
    client.force_login(alice)
    page = f"/rollouts/{rollout.pk}/"
    client.post(f"{page}pause/", {"reason": "look"}, headers={"referer": f"http://testserver{page}"})
    assert "The rollout of compliance is paused." in client.get(page).content.decode()
    rollout.rollback(reason="x", by=alice.as_actor())
    with pytest.raises(InvalidTransition, match="The rollout is rolled back: "):
        rollout.promote(reason="x", by=alice.as_actor())
    assert str(Approval(alias=alias, kind="alias_policy")) == "change of the policy of compliance"
