"""The Python client against a live web process, over a network that loses the first answer to every POST."""

from __future__ import annotations

import asyncio
import email.utils
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.client import ApiError, AsyncClient, Client, Failed, TimedOut, Unreachable, calls
from registry.models import Adapter, AdapterVersion, Alias, BlindTest, Rollout
from registry.serving.reconciler import RECONCILER
from tests.builders import write_adapter
from training.models import Dataset, RankAnalysis, TrainingRun


class Forgetful(httpx.HTTPTransport):
    """The server carries out every POST, and its first answer is lost on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return answer
        self.sent.append(key)
        if self.sent.count(key) == 1:
            answer.close()
            raise httpx.ReadError("the answer was lost", request=request)
        return answer


def test_a_lost_answer_has_one_effect(
    site: str,
    ci: str,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    network = Forgetful()
    with Client(site, ci, transport=network) as hub:
        pushed = hub.send(calls.push("dora", write_adapter(tmp_path / "third", seed=3)))
        analysis = hub.send(calls.analyze("eu", "tiny", dataset.pk, {"uniform_rank": 4}))
        run = hub.send(calls.train("eu", "dora", dataset.pk, hyperparameters={"steps": 5}))
        opened = hub.send(calls.open_rollout("compliance", candidate.served_name, [{"weight": 10}], "CI"))
        back = hub.send(calls.roll_back(opened, "CI"))
        events = AuditEvent.objects.filter(object_id=opened["id"]).count()
        assert [row["id"] for row in hub.send(calls.rollouts("compliance"))["results"]] == [opened["id"]]
        assert hub.send(calls.rollouts("another"))["results"] == []
        assert hub.send(calls.verify_audit("eu"))["ok"]
    assert (pushed["number"], AdapterVersion.objects.count()) == (3, 3)
    assert [str(row.pk) for row in RankAnalysis.objects.all()] == [analysis["id"]]
    assert [str(row.pk) for row in TrainingRun.objects.all()] == [run["id"]]
    assert [str(row.pk) for row in Rollout.objects.all()] == [back["id"]]
    assert (back["status"], events) == ("rolled_back", 2)
    assert {network.sent.count(key) for key in network.sent} == {2}
    assert len(set(network.sent)) == 5


def test_refusals_are_told_and_not_repeated(site: str, ci: str, alias: Alias, adapter: Adapter) -> None:
    with Client(site, ci) as hub:
        with pytest.raises(ApiError) as missing:
            hub.send(calls.train("nowhere", "dora", 1))
        assert (missing.value.status, missing.value.code) == (422, "unknown_project")
        assert missing.value.errors[0]["field"] == "project"
        with pytest.raises(TimedOut, match="continues on the server"):
            list(hub.poll(calls.history("compliance"), timeout_s=0))
        lines = hub.send(calls.export_audit("eu"))
        assert len(lines.splitlines()) >= AuditEvent.objects.filter(project__slug="eu").count() - 1
    with Client(site, "ah_no_token") as stranger, pytest.raises(ApiError) as refused:
        stranger.send(calls.history("compliance"))
    assert refused.value.status == 401


def test_what_was_begun_is_waited_for(
    site: str, ci: str, alias: Alias, candidate: AdapterVersion, dataset: Dataset, tmp_path: Path
) -> None:
    with Client(site, ci) as hub:
        # The same content as the dataset's; a path may be a text.
        data = hub.wait(calls.upload_dataset("eu", str(tmp_path / "rows.jsonl")))
        assert data["id"] == dataset.pk
        run = hub.send(calls.train("eu", "dora", data["id"], hyperparameters={"steps": 5}))
        hub.send(calls.cancel_job(run, "wrong data"))
        with pytest.raises(Failed, match="cancelled") as cancelled:
            hub.wait(calls.training_run(run["id"]))
        assert cancelled.value.resource["status"] == "cancelled"
        assert hub.send(calls.resume_run(run))["status"] == "queued"
        with pytest.raises(TimedOut):
            hub.wait(calls.training_run(run["id"]), timeout_s=0)
        with pytest.raises(ValueError, match="starts nothing"):
            hub.wait(calls.change_adapter("dora", description="x"))
        with pytest.raises(ValueError, match="no status"):
            hub.wait(calls.alias("compliance"))


def test_a_rollout_is_steered(site: str, ci: str, alias: Alias, candidate: AdapterVersion) -> None:
    with Client(site, ci) as hub:
        opened = hub.send(calls.open_rollout("compliance", candidate.served_name, [{"weight": 10}], "CI"))
        Rollout.objects.get().started(by=RECONCILER)
        running = hub.wait(calls.rollout(opened["id"]), until="running")
        paused = hub.send(calls.pause(running, "an incident"))
        assert (paused["status"], paused["status_reason"]) == ("paused", "an incident")
        with pytest.raises(Failed, match="an incident") as stopped:
            hub.wait(calls.rollout(opened["id"]))
        assert stopped.value.resource["stable"] == alias.version.served_name
        resumed = hub.send(calls.resume(paused, "it is over"))
        with pytest.raises(ApiError) as stale:
            hub.send(calls.pause(paused, "again"))
        assert (resumed["status"], stale.value.code) == ("running", "stale_generation")
        assert hub.send(calls.cancel(resumed, "not this one"))["status"] == "rolled_back"

    async def from_a_loop() -> str:
        async with AsyncClient(site, ci) as hub:
            with pytest.raises(Failed, match="not this one"):
                await hub.wait(calls.rollout(opened["id"]))
            return (await hub.wait(calls.version("dora", 1)))["status"]

    assert asyncio.run(from_a_loop()) == "ready"


@pytest.mark.parametrize("address", ["hub.example.org", "localhost:8000", "ftp://hub.example.org", "https://", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Client(address, "t")


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("hub.example.org", "write https://hub.example.org"),
        (" https://hub.example.org", "white space"),
        ("https://hub.example.org\n", "white space"),
        ("https://ann:geheim@hub.example.org", "leave user and password out"),
        ("https://hub.example.org?x=1", "what follows"),
        ("https://hub.example.org/#here", "what follows"),
        ("https://hub.example.org/api/v1/", "leave /api/v1 out"),
        ("https://hub.example.org:99999", "port"),
    ],
)
def test_a_refused_address_says_its_right_form(address: str, fix: str) -> None:
    with pytest.raises(ValueError, match="is not an address") as caught:
        Client(address, "t")
    assert (fix in str(caught.value), "geheim" in str(caught.value)) == (True, False)


def test_blind_tests_are_asked_for_and_read(site: str, ci: str, candidate: AdapterVersion, alice: User) -> None:
    answers = [{"number": number, "text": f"text of {number}"} for number in (1, 2)]
    BlindTest.keep(candidate.adapter, "the bank shall", answers, by=alice.as_actor())
    with Client(site, ci) as hub:
        [test] = hub.send(calls.blind_tests("dora"))["results"]
        assert (test["versions"], {answer["number"] for answer in test["answers"]}) == ([1, 2], {None})
        with pytest.raises(ApiError) as refused:
            hub.send(calls.ask_blindly("dora", [1, 9], ["the bank shall"], max_tokens=4))
    assert refused.value.errors[0]["field"] == "versions"


def test_the_same_calls_from_an_event_loop(site: str, ci: str, alias: Alias) -> None:
    async def story() -> tuple[str, str]:
        async with AsyncClient(site, ci) as hub:
            moves = await hub.send(calls.history("compliance", "2100-01-01T00:00:00Z"))
            async for state in hub.poll(calls.version("dora", 1), timeout_s=60):
                return moves[0]["version"], state["served_name"]
        raise AssertionError("a look comes at once")

    assert asyncio.run(story()) == (alias.version.served_name, alias.version.served_name)


def test_a_list_is_read_over_its_pages(site: str, ci: str, adapter: Adapter) -> None:
    for slug in ("b", "c"):
        Adapter.objects.create(project=adapter.project, base_model=adapter.base_model, slug=slug)
    call = calls.get("adapters/", page_size="1", project="eu")
    with Client(site, ci) as hub:
        assert {row["slug"] for row in hub.rows(call)} == {"dora", "b", "c"}

    async def from_a_loop() -> set[str]:
        async with AsyncClient(site, ci) as hub:
            return {row["slug"] async for row in hub.rows(call)}

    assert asyncio.run(from_a_loop()) == {"dora", "b", "c"}


class Busy:
    """A server that refuses a request some times, and notes what it was sent."""

    def __init__(self, *refusals: tuple[int, dict[str, str]]) -> None:
        self.refusals = list(refusals)
        self.keys: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("Idempotency-Key"))
        if not self.refusals:
            return httpx.Response(200, json={"id": "r", "status": "queued"})
        status, headers = self.refusals.pop(0)
        return httpx.Response(status, headers=headers, json={"detail": "later", "code": "throttled"})


SOON = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)


@pytest.mark.parametrize("kind", ["threads", "loop"])
@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (429, {"Retry-After": "7"}, 7, 7),
        (503, {"Retry-After": "90"}, 90, 90),
        (503, {"Retry-After": SOON}, 0, 50),
        (503, {}, 0.2, 0.2),
        (502, {"Retry-After": "soon"}, 0.2, 0.2),
        (504, {}, 0.2, 0.2),
    ],
)
def test_a_refusal_that_passes_is_retried_when_the_server_says(
    kind: str, status: int, headers: dict[str, str], least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    server = Busy((status, headers))
    if kind == "threads":
        monkeypatch.setattr("adapterhub.client.clients.time.sleep", pauses.append)
        with Client("http://hub.invalid", "t", transport=httpx.MockTransport(server)) as hub:
            assert hub.send(calls.train("eu", "dora", 4))["id"] == "r"
    else:

        async def noted(seconds: float) -> None:
            pauses.append(seconds)

        async def ask() -> str:
            async with AsyncClient("http://hub.invalid", "t", transport=httpx.MockTransport(server)) as hub:
                return (await hub.send(calls.train("eu", "dora", 4)))["id"]

        monkeypatch.setattr("adapterhub.client.clients.asyncio.sleep", noted)
        assert asyncio.run(ask()) == "r"
    assert len(pauses) == 1
    assert least <= pauses[0] <= most
    assert (len(server.keys), len(set(server.keys)), None in server.keys) == (2, 1, False)


@pytest.mark.parametrize(
    ("refusals", "attempts"),
    [([(429, {"Retry-After": "3600"})], 1), ([(503, {"Retry-After": "1"})] * 9, 5), ([(500, {})], 1), ([(422, {})], 1)],
)
def test_a_refusal_that_does_not_pass_is_raised(
    refusals: list[tuple[int, dict[str, str]]], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.client.clients.time.sleep", lambda seconds: None)
    server = Busy(*refusals)
    with (
        Client("http://hub.invalid", "t", transport=httpx.MockTransport(server)) as hub,
        pytest.raises(ApiError) as raised,
    ):
        hub.send(calls.train("eu", "dora", 4))
    assert (raised.value.status, len(server.keys)) == (refusals[0][0], attempts)


def test_a_server_that_is_away_is_named() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with (
        Client("http://hub.invalid", "t", transport=httpx.MockTransport(away)) as hub,
        pytest.raises(Unreachable, match=r"hub\.invalid"),
    ):
        hub.send(calls.projects())
