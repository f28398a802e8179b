"""Guessing: passwords and codes at every door, with one name or address or with many, one by one or all at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts import login_lockout, second_factor, tokens
from adapterhub.accounts.login_lockout import FREE, FREE_CODES, wait_after
from adapterhub.accounts.models import FailedAttempts, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from tests.builders import member
from tests.builders.people import app_code

ROOT = Path(__file__).resolve().parents[2]
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"
RIGHT = {"password": "alice-long-password"}


def at(address: str, user: User | None = None) -> Client:
    """Return a browser at the address; a signed-in one has been so for longer than a signature allows."""
    client = Client(REMOTE_ADDR=address)
    if user:
        client.force_login(user)
        session = client.session
        session["signed_in_at"] -= 3600
        session.save()
    return client


def sign_in(client: Client, password: str) -> int:
    return client.post("/login/", {"username": "alice", "password": password}).status_code


@pytest.fixture
def waiting(project: Project, alice: User) -> str:
    """A token that waits for a signature of somebody else than its author."""
    author = member("erin", project, Membership.Role.ADMIN)
    return tokens.create(project, "t", ["admin"], by=author.as_actor(), reason="members")[0].pk


def by_rest(client: Client, waiting: str, password: str) -> int:
    body = {"reason": "good", "password": password}
    return client.post(f"/api/v1/tokens/{waiting}/approve/", body, content_type="application/json").status_code


def by_page(client: Client, waiting: str, password: str) -> int:
    form = {"reason": "good", "meaning": "approved", "password": password}
    return client.post(f"/tokens/{waiting}/", form).status_code


def by_set_up(client: Client, waiting: str, password: str) -> int:
    page = client.get("/second-factor/").content.decode()
    (secret,) = re.findall(r"[A-Z2-7]{32}", page)
    client.post("/second-factor/", {"code": app_code(secret), "password": password})
    return 200 if get_user_model().objects.filter(second_factor__isnull=False).exists() else 422


def by_admin(client: Client, waiting: str, password: str) -> int:
    User.objects.filter(username="alice").update(is_staff=True)
    new = "quite-another-long-1"
    form = {"old_password": password, "new_password1": new, "new_password2": new}
    return 200 if client.post("/admin/password_change/", form).status_code == 302 else 422


DOORS = [by_rest, by_page, by_set_up, by_admin]
Door = Callable[[Client, str, str], int]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.threat("C12")
@pytest.mark.slow
def test_the_right_password_after_many_wrong_ones_is_refused_at_every_door(
    alice: User, waiting: str, door: Door
) -> None:
    client = at(HERE, alice)
    wrong = [door(client, waiting, f"guess {number}") for number in range(12)]
    assert not {200, 302} & {*wrong}
    refused = door(client, waiting, "alice-long-password")
    assert refused not in (200, 302)
    FailedAttempts.objects.update(blocked_until=now())
    assert door(client, waiting, "alice-long-password") in (200, 302)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.threat("C12")
@pytest.mark.slow
def test_a_signature_form_and_the_sign_in_share_their_count(alice: User, waiting: str, door: Door) -> None:
    client = at(HERE, alice)
    for number in range(FREE):
        door(client, waiting, f"guess {number}")
    assert sign_in(at(HERE), "alice-long-password") == 429


@pytest.mark.threat("C12")
def test_whoever_holds_a_session_gains_nothing_by_other_addresses(alice: User, waiting: str) -> None:
    client = at(HERE, alice)
    answers = []
    for number in range(FREE + 1):
        client.defaults["REMOTE_ADDR"] = f"203.0.113.{number}"
        answers.append(by_rest(client, waiting, "guess"))
    assert answers == [403] * FREE + [429]


@pytest.mark.threat("C12")
def test_nobody_locks_a_strangers_name_out_from_elsewhere(alice: User) -> None:
    attacker = at(ELSEWHERE)
    assert [sign_in(attacker, "guess") for _ in range(FREE + 1)] == [200] * FREE + [429]
    assert sign_in(at(HERE), "alice-long-password") == 302
    assert sign_in(attacker, "alice-long-password") == 429, "her sign-in here does not help the attacker there"


def test_all_of_an_ipv6_network_is_one_address(alice: User) -> None:
    answers = [sign_in(at(f"2001:db8::{number:x}"), "guess") for number in range(FREE + 1)]
    assert answers == [200] * FREE + [429]
    assert sign_in(at("2001:db8:0:1::1"), "alice-long-password") == 302


def test_names_that_nobody_has_are_braked_alike(alice: User) -> None:
    client = at(HERE)
    answers = [client.post("/login/", {"username": "nobody", **RIGHT}) for _ in range(FREE + 1)]
    assert [answer.status_code for answer in answers] == [200] * FREE + [429]


def test_each_wait_is_twice_the_one_before() -> None:
    waits = [wait_after(level, FREE).total_seconds() for level in range(FREE - 1, FREE + 12)]
    assert waits == [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


def test_the_waits_grow_and_are_forgotten(alice: User) -> None:
    client = at(HERE)
    for _ in range(FREE):
        sign_in(client, "guess")
    for seconds in (10, 20, 40):
        answer = client.post("/login/", {"username": "alice", **RIGHT})
        assert (answer.status_code, answer["Retry-After"]) == (429, str(seconds))
        FailedAttempts.objects.update(blocked_until=now())
        sign_in(client, "guess")
    long_ago = now() - timedelta(hours=FREE + 4)
    FailedAttempts.objects.update(at=long_ago, blocked_until=long_ago)
    assert [sign_in(client, "guess") for _ in range(FREE + 1)] == [200] * FREE + [429]


@pytest.mark.threat("C12")
def test_attempts_at_the_same_time_are_counted(fresh_database: str, alice: User) -> None:
    def attempt(_: int) -> int:
        try:
            return sign_in(at(HERE), "guess")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as threads:
        answers = sorted(threads.map(attempt, range(16)))
    assert answers == [200] * FREE + [429] * (16 - FREE)


def test_the_right_password_forgets_the_wrong_ones(alice: User) -> None:
    for _ in range(3):
        assert [sign_in(at(HERE), "guess") for _ in range(FREE - 1)] == [200] * (FREE - 1)
        assert sign_in(at(HERE), "alice-long-password") == 302


@pytest.fixture
def second_step(alice: User) -> Callable[[str, str], int]:
    """Alice has an app. A browser at an address knows her password, and types a code."""
    secret = second_factor.new_secret()
    second_factor.enable(alice, secret, app_code(secret, -1), by=alice.as_actor())

    def type_code(address: str, code: str) -> int:
        client = at(address)
        assert sign_in(client, "alice-long-password") == 302
        return client.post("/login/code/", {"code": code or app_code(secret)}).status_code

    return type_code


def test_the_password_again_gives_no_new_codes_to_guess(second_step: Callable[[str, str], int]) -> None:
    for _ in range(FREE):
        second_step(HERE, "000000")
    assert second_step(HERE, "") == 422
    assert second_step(ELSEWHERE, "") == 302


@pytest.mark.threat("C12")
@pytest.mark.slow
def test_codes_guessed_from_many_addresses_are_braked(second_step: Callable[[str, str], int]) -> None:
    for number in range(FREE_CODES):
        second_step(f"203.0.113.{number}", "000000")
    assert second_step(ELSEWHERE, "") == 422


def test_the_change_of_a_password_is_an_event_and_its_session_stays_listed(alice: User) -> None:
    client = at(HERE, alice)
    assert by_admin(client, "", "alice-long-password") == 200
    assert AuditEvent.objects.get(tag="user:changed").after == {"changed": ["password"]}
    assert b"this one" in client.get("/sessions/").content or alice.sign_ins.open().count() == 1


@pytest.mark.threat("C12")
def test_no_password_is_checked_past_the_brake() -> None:
    """A new door that asks for a password goes through `login_lockout.is_password` or the sign-in's backend."""
    checks = re.compile(r"\ba?check_password\b|\ba?authenticate\(request|PasswordChangeForm|AuthenticationForm")
    accounts = ROOT / "adapterhub/accounts"
    allowed = {accounts / name for name in ("login_lockout.py", "authentication.py", "pages/sign_in.py")}
    product = [ROOT / name for name in ("adapterhub", "registry", "training")]
    assert {path for folder in product for path in folder.rglob("*.py") if checks.search(path.read_text())} == allowed


def test_no_forgotten_attempts_are_kept(alice: User) -> None:
    sign_in(at(HERE), "guess")
    FailedAttempts.objects.update(at=now() - login_lockout.KEPT)
    assert sign_in(at(ELSEWHERE), "alice-long-password") == 302
    assert [attempts.level for attempts in FailedAttempts.objects.all()] == [0]
