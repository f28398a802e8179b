"""What an administrator does in Django's admin stands in the trail; history itself cannot be changed there."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from adapterhub.accounts import service_accounts
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Alias


@pytest.fixture
def root(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", password="a-long-enough-password"))
    return client


def last_event(tag: str) -> AuditEvent:
    return AuditEvent.objects.filter(tag=tag).latest("id")


@pytest.mark.slow
def test_roles_given_and_taken_in_the_admin_are_recorded(root: Client, project: Project, bob: User) -> None:
    url = reverse("admin:accounts_project_change", args=[project.pk])
    membership = Membership.objects.get(user=bob)
    total = {
        "memberships-TOTAL_FORMS": 2,
        "memberships-INITIAL_FORMS": 1,
        "slug": "eu",
        "name": "Renamed",
        "created_at_0": "2026-01-01",
        "created_at_1": "00:00",
    }
    removed_row = {"memberships-0-id": membership.pk, "memberships-0-project": project.pk, "memberships-0-DELETE": "on"}
    added_row = {"memberships-1-project": project.pk, "memberships-1-user": bob.pk, "memberships-1-role": "auditor"}
    answer = root.post(url, {**total, **removed_row, **added_row})
    assert answer.status_code == 302, answer.content.decode()
    assert [*bob.memberships.values_list("role", flat=True)] == ["auditor"]
    assert last_event("membership:revoked").before == {"user": "bob", "role": "viewer"}
    assert last_event("membership:granted").after == {"user": "bob", "role": "auditor"}
    assert last_event("membership:granted").actor_name == "root"
    assert last_event("project:changed").after == {"name": "Renamed"}


def test_a_new_password_is_recorded_without_the_password(root: Client, bob: User) -> None:
    url = reverse("admin:auth_user_password_change", args=[bob.pk])
    word = "a-new-long-passphrase"
    answer = root.post(url, {"password1": word, "password2": word, "usable_password": "true"})
    assert answer.status_code == 302, answer.content.decode()
    event = last_event("user:changed")
    assert event.after == {"changed": ["password"]}
    assert word not in bytes(event.canonical).decode()


def test_a_service_account_is_given_no_password(root: Client, project: Project, alice: User) -> None:
    robot = service_accounts.create(project, "robot", "trainer", by=alice.as_actor())
    url = reverse("admin:auth_user_password_change", args=[robot.pk])
    word = "a-new-long-passphrase"
    body = {"password1": word, "password2": word, "usable_password": "true"}
    for answer in (root.get(url), root.post(url, body)):
        assert answer.status_code == 403
        assert b"has no password" in answer.content
    robot.refresh_from_db()
    assert not robot.has_usable_password()


@pytest.mark.threat("B4")
def test_history_is_shown_and_never_changed(root: Client, alias: Alias) -> None:
    """Everything but accounts and projects has no form that saves, for a superuser too."""
    editable = {"user", "project", "group"}
    for model, page in admin.site._registry.items():
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        if (
            model._meta.app_label in ("accounts", "audit", "registry", "training")
            and model._meta.model_name not in editable
        ):
            assert root.get(reverse(f"{name}_changelist")).status_code == 200
            assert root.get(reverse(f"{name}_add")).status_code == 403
            for record in page.model.objects.all()[:1]:
                assert root.post(reverse(f"{name}_change", args=[record.pk]), {}).status_code == 403
                assert root.post(reverse(f"{name}_delete", args=[record.pk]), {"post": "yes"}).status_code == 403
