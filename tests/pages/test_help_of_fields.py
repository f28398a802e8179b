"""Every control of every page has a label without a colon, and help beside it or a label that needs none."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from registry.models import AdapterVersion
from tests.pages.controls import Controls
from tests.pages.every_page import every_page
from tests.pages.realistic import World, cast
from training.models import Dataset

# Label -> why it needs no help.
PLAIN = {
    "Username|Password|Code|New password.*": "who signs in knows it",
    "Search": "an example stands in it, and it changes nothing",
    "Status|State|Kind|Role|Method|Engine|Format|Webhook|What|Since|Until": "a filter of a list: it changes nothing",
    "Project|Member|Adapter|Dataset|Base model|Cluster|Alias|Other analysis": "the names of what there is",
    "Description": "free text that people read",
    "Prompt": "what is asked",
    r"v\d+|run .*": "one of those that a comparison is made of",
    "manual: .*|(careful|quick).*: .*|own steps and guardrails": "a plan, shown below its label",
}


def is_plain(label: str) -> bool:
    return any(re.fullmatch(pattern, label) for pattern in PLAIN)


def faults_of(name: str, page: str) -> list[str]:
    read = Controls(page)
    faults = []
    for control in read.controls:
        label = read.label_of(control)
        place = f"{name}: {control.name} ({label})"
        if not label:
            faults.append(f"{place} has no label")
        elif label.endswith(":"):
            faults.append(f"{place}: the label ends in a colon")
        elif not (read.help_of(control) or is_plain(label)):
            faults.append(f"{place} has no help")
    return faults


@pytest.mark.slow
def test_every_label_of_every_page_has_its_help(
    project: Project, alice: User, candidate: AdapterVersion, dataset: Dataset, client: Client
) -> None:
    cast(project)
    pages = every_page(World(project, alice, adapters=3, versions=9), candidate, dataset)
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True)
    client.force_login(alice)
    pages |= {"people": reverse("people"), "new-project": reverse("new-project")}
    faults = [fault for name, url in pages.items() for fault in faults_of(name, client.get(url).content.decode())]
    stranger = Client()
    faults += faults_of("login", stranger.get(reverse("login")).content.decode())
    assert "\n".join(sorted(set(faults))) == ""


def test_a_control_without_label_or_help_is_noticed() -> None:
    page = """
    <form><p><label for="a">Rank</label><input id="a" name="rank"><span class="helptext">Of each.</span></p>
    <p><label for="b">Steps</label><input id="b" name="steps" aria-describedby="b-help"></p>
    <i id="b-help" class="helptext">Of the optimiser.</i>
    <p><label for="c">Seed:</label><input id="c" name="seed"></p><p><input name="bare"></p>
    <p><label><input type="checkbox" name="hold"> Hold</label></p>
    <p><label for="d">Search</label><input id="d" name="q"><input type="hidden" name="sort"></p></form>
    """
    assert faults_of("page", page) == [
        "page: seed (Seed:): the label ends in a colon",
        "page: bare () has no label",
        "page: hold (Hold) has no help",
    ]
