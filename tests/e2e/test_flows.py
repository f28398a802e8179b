"""What people do, each with a browser and a role of their own, against every process of the real product."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import Live, live_product
from tests.tiny_model import sentences, write_jsonl
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SignIn = Callable[..., Any]
PATIENCE_MS = 110_000
SHARE, SIGN = "of the users get the candidate; each user stays in their arm", "and the plan is signed"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with live_product() as running:
        yield running


@pytest.fixture(scope="module")
def dataset(live: Live, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a stored dataset."""
    file = write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", sentences(120))
    sent = live.rest.post(
        "datasets/", data={"project": "eu", "name": "sentences"}, files={"file": ("rows.jsonl", file.read_bytes())}
    )
    assert sent.is_success, sent.text
    live.wait(f"datasets/{sent.json()['id']}/", "ready")
    return "sentences"


@pytest.fixture
def sign_in(browser: Any, live: Live) -> Iterator[SignIn]:
    """A page of a person who came through the login page; no script on it may fail."""
    contexts, errors = [], []

    def come(name: str, path: str = "/", **options: Any) -> Any:
        context = browser.new_context(base_url=live.url, viewport={"width": 1440, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path)
        page.get_by_label("Username").fill(name)
        page.get_by_label("Password").fill(f"{name}-long-password")
        page.get_by_role("button", name="Sign in").click()
        page.locator("h1", has_not_text="AdapterHub").wait_for()
        return page

    yield come
    for context in contexts:
        context.close()
    assert errors == []


def test_a_first_login_leads_to_the_page_that_was_asked_for(sign_in: SignIn) -> None:
    page = sign_in("vera", "/adapters/dora/")
    page.get_by_role("heading", name="dora", exact=True).wait_for()
    page.get_by_role("link", name="Overview").click()
    page.get_by_text("Nothing is waiting for your signature.").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Sign in").wait_for()
    page.go_back()
    page.goto("/adapters/")
    page.get_by_role("button", name="Sign in").wait_for()


def test_a_dataset_with_a_broken_line_is_put_right_and_read(sign_in: SignIn, tmp_path: Path) -> None:
    page = sign_in("tom", "/datasets/")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n' * 16 + "{broken\n")
    page.get_by_label("Name").fill("second thoughts")
    page.get_by_label("File").set_input_files(broken)
    page.get_by_role("button", name="Check and store it").click()
    page.get_by_text("Line 17").first.wait_for()
    assert page.get_by_label("Name").input_value() == "second thoughts"
    page.get_by_label("File").set_input_files(write_jsonl(tmp_path / "good.jsonl", sentences(60, seed=5)))
    page.get_by_role("button", name="Check and store it").click()
    page.get_by_role("heading", name="second thoughts").wait_for()
    page.get_by_role("button", name="Render").click()
    page.get_by_role("heading", name="First rows, rendered").wait_for()
    assert page.locator(".completion").count() > 0


def test_an_analysis_plans_ranks_while_its_page_is_open(sign_in: SignIn, dataset: str) -> None:
    page = sign_in("tom", "/rank-analyses/new/")
    page.get_by_label("Base model").select_option(label="tiny")
    page.get_by_label("Dataset", exact=True).select_option(label=dataset)
    for name, value in {"uniform_rank": "4", "rank_max": "8", "quantum": "2", "samples": "4"}.items():
        page.locator(f"#id_{name}").fill(value)
    page.get_by_role("button", name="Queue the analysis").click()
    page.get_by_role("img", name="Rank of every module").wait_for()
    page.get_by_role("link", name="Train with this plan").click()
    assert page.locator("#id_rank_analysis").input_value() != ""


def last_step(page: Any) -> int:
    """Where the loss curve ends, as soon as there is one. A locator outlives the reload that a new state makes."""
    label = page.locator("svg[aria-label^='Training loss']").get_attribute("aria-label")
    return int(re.search(r"to (\d+),", label)[1])


def grows(page: Any, beyond: int) -> int:
    """The curve of an open page moves on without a reload; returns where it is."""
    wait_until(lambda: page.wait_for_timeout(200) or last_step(page) > beyond, 110, f"a curve beyond step {beyond}")
    return last_step(page)


def stop(page: Any) -> None:
    """A destructive step says what it does and asks why."""
    page.locator("summary", has_text="Cancel").click()
    page.get_by_text("Its last checkpoint is kept").wait_for()
    page.locator(".revoke").get_by_label("Reason").fill("The data was wrong.")
    page.get_by_role("button", name="Cancel").click()


def test_a_training_is_watched_cancelled_and_resumed(sign_in: SignIn, dataset: str) -> None:
    page = sign_in("tom", "/training/new/")
    page.get_by_label("Adapter", exact=True).select_option(label="dora")
    page.get_by_label("Dataset", exact=True).select_option(label=dataset)
    for name, value in {"steps": "100000", "batch_size": "2", "max_length": "32"}.items():
        page.locator(f"#id_{name}").fill(value)
    page.get_by_text("The same run as run.yaml").wait_for()
    page.get_by_role("button", name="Queue the run").click()
    first = grows(page, 0)
    page.evaluate("window.untouched = true")
    grows(page, first)
    assert page.evaluate("window.untouched") is True
    stop(page)
    page.get_by_role("button", name="Resume").wait_for()
    reached = last_step(page)
    page.get_by_role("button", name="Resume").click()
    page.locator("summary", has_text="Cancel").wait_for()
    grows(page, reached)
    stop(page)
    page.get_by_role("button", name="Resume").wait_for()


def test_three_versions_answer_the_same_prompt_and_are_voted_on_blindly(sign_in: SignIn, live: Live) -> None:
    page = sign_in("tom", "/adapters/dora/v3/")
    for number in (1, 2):
        page.get_by_role("checkbox", name=f"v{number}", exact=True).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("heading", name="dora v3, v2 and v1").wait_for()
    page.get_by_label("Prompts").fill("the bank shall")
    page.get_by_label("Longest answer, in tokens").fill("1")
    page.get_by_role("button", name="Ask 3 versions").click()
    test = page.locator("article.blind").first
    # Only the wrong version says "exempt"; which of the letters that is stands nowhere before the vote.
    wrong = test.locator(".grid > div", has_text="exempt")
    assert test.locator(".grid a").count() == 0
    letter = wrong.locator("strong").inner_text()
    test.get_by_role("button", name=f"{letter} is best").click()
    page.get_by_text("Your vote is recorded: v3.").wait_for()
    assert page.locator("article.blind .grid > div", has_text="exempt").locator("a").inner_text() == "v3"
    page.get_by_role("link", name="Compute it from the weights").click()
    page.get_by_role("img", name="Cosine distance of every").first.wait_for()
    bob = sign_in("bob", page.url)
    bob.get_by_role("button", name="No difference").click()
    bob.get_by_text("Your vote is recorded: no difference.").wait_for()


def start_rollout(page: Any, number: int, alias: str) -> None:
    page.goto(f"/adapters/dora/v{number}/")
    page.get_by_label("Alias").select_option(label=alias)
    page.locator("#id_reason").fill("it learnt the second prompt")
    page.get_by_role("button", name="Start the rollout").click()
    page.get_by_text(SIGN if alias == "guarded" else SHARE).first.wait_for()


def test_a_promotion_is_asked_for_signed_by_another_person_and_done(sign_in: SignIn, live: Live) -> None:
    olga = sign_in("olga")
    start_rollout(olga, 2, "guarded")
    rollout = olga.url
    assert olga.get_by_role("button", name="Promote").count() == 0
    olga.get_by_role("link", name=re.compile("Asked by")).first.click()
    olga.get_by_role("heading", name="What a signature is about").wait_for()
    assert olga.get_by_role("button", name="Sign and approve").count() == 0
    bob = sign_in("bob")
    bob.locator("#waiting").get_by_role("link", name="Promotion of guarded").click()
    width = {
        name: bob.get_by_role("button", name=name).bounding_box()["width"] for name in ("Sign and approve", "Reject")
    }
    assert width["Reject"] < width["Sign and approve"]
    bob.locator("#sign_reason").fill("The evaluation is better.")
    bob.get_by_role("button", name="Sign and approve").click()
    bob.get_by_text("is approved").first.wait_for()
    olga.goto(rollout)
    olga.get_by_text(SHARE).first.wait_for()
    olga.goto(rollout)
    olga.locator("#promote-reason").fill("signed")
    olga.get_by_role("button", name="Promote").click()
    olga.get_by_text("Everybody gets dora v2").first.wait_for()


def arms_of(page: Any, users: int) -> set[tuple[str, str]]:
    """(arm, answer) of some users of the alias `open`, each with a session of its own."""
    arms = set()
    for number in range(users):
        page.goto("/playground/?models=open&prompt=the+bank+shall&max_tokens=1&temperature=0")
        page.get_by_label("Session key").fill(f"user-{number}")
        page.get_by_role("button", name="Send").click()
        arm = page.locator("dt:text('arm') + dd").inner_text().split()[0]
        arms.add((arm, page.locator(".answer").inner_text().strip()))
    return arms


def test_users_are_split_promoted_and_rolled_back(sign_in: SignIn, live: Live) -> None:
    page = sign_in("olga")
    start_rollout(page, 3, "open")
    rollout = page.url
    wait_until(lambda: arms_of(page, 8) == {("control", "report"), ("candidate", "exempt")}, 40, "two arms")
    page.goto(rollout)
    page.locator("#promote-reason").fill("every user")
    page.get_by_role("button", name="Promote").click()
    page.get_by_text("Everybody gets dora v3").first.wait_for()
    wait_until(lambda: {answer for _, answer in arms_of(page, 2)} == {"exempt"}, 20, "everybody gets v3")
    page.goto(rollout)
    page.locator("#rollback-reason").fill("3 a.m.")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("Everybody gets dora v1").first.wait_for()
    wait_until(lambda: {answer for _, answer in arms_of(page, 2)} == {"report"}, 20, "everybody gets v1 again")


def test_an_auditor_verifies_and_takes_the_trail_away(sign_in: SignIn, tmp_path: Path) -> None:
    page = sign_in("gus", "/audit/")
    page.get_by_role("button", name="Verify the chains").click()
    page.get_by_text("intact").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="bundle").click()
    file = tmp_path / "bundle.zip"
    download.value.save_as(file)
    with zipfile.ZipFile(file) as bundle:
        assert any(name.endswith("manifest.json") for name in bundle.namelist())
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON lines").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert any("alias:created" in line for line in lines)
    assert all(json.loads(line) for line in lines)


def test_a_token_is_shown_once_works_and_is_revoked(sign_in: SignIn, live: Live) -> None:
    page = sign_in("ada", "/tokens/")
    page.locator("#id_name").fill("pipeline")
    page.get_by_label("Read", exact=True).check()
    page.get_by_role("button", name="Create").first.click()
    text = page.locator("pre").inner_text().strip()
    adapters, headers = f"{live.url}/api/v1/adapters/", {"Authorization": f"Bearer {text}"}
    assert httpx.get(adapters, headers=headers).status_code == 200
    page.goto("/tokens/")
    assert page.get_by_text(text).count() == 0
    row = page.get_by_role("row", name=re.compile("pipeline"))
    row.get_by_text("Revoke pipeline").click()
    row.get_by_text("Programs that use it are refused at once").wait_for()
    row.get_by_label("Reason").fill("The pipeline has another one.")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_text("pipeline no longer works.").wait_for()
    page.get_by_role("row", name=re.compile("pipeline")).get_by_text("revoked").wait_for()
    assert httpx.get(adapters, headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vera", "/training/new/"),
        ("vera", "/audit/"),
        ("tom", "/tokens/"),
        ("olga", "/rank-analyses/new/"),
        ("bob", "/webhooks/"),
        ("gus", "/training/new/"),
    ],
)
def test_the_wrong_role_is_told_what_it_needs(sign_in: SignIn, name: str, path: str) -> None:
    page = sign_in(name, path)
    page.get_by_text(re.compile("needs? (scope|the role)")).wait_for()


def test_a_viewer_sees_no_verb_and_a_forged_one_is_refused(sign_in: SignIn, live: Live) -> None:
    page = sign_in("vera")
    for path in ("/adapters/dora/v2/", "/aliases/open/", "/datasets/", "/adapters/dora/v1/compare/?to=2"):
        page.goto(path)
        assert page.locator("main form[method=post]").count() == 0, path
    forged = """() => fetch("/adapters/dora/v2/promote/", {method: "POST", headers: {"X-CSRFToken":
        document.cookie.match(/csrftoken=([^;]+)/)?.[1] || document.querySelector("[name=csrfmiddlewaretoken]").value},
        body: new URLSearchParams({reason: "sneak", weight: 50})}).then(answer => answer.text())"""
    assert "This needs scope &#x27;operate&#x27;" in page.evaluate(forged)
    assert all(rollout["reason"] != "sneak" for rollout in live.rest.get("rollouts/").json()["results"])


def test_without_javascript_people_read_and_still_act(sign_in: SignIn, live: Live) -> None:
    page = sign_in("tom", java_script_enabled=False)
    for path in (
        "/",
        "/adapters/",
        "/adapters/dora/",
        "/adapters/dora/v1/",
        "/aliases/open/",
        "/rollouts/",
        "/clusters/cpu/",
        "/training/",
        "/datasets/",
        "/adapters/dora/v1/compare/?to=2&to=3",
    ):
        assert page.goto(path).status == 200, path
        assert page.get_by_role("heading", level=1).count() == 1, path
    page.get_by_role("link", name="Compute it from the weights").click()
    page.get_by_role("img", name="Cosine distance of every").first.wait_for()
    page.goto("/playground/?models=open")
    page.get_by_label("Prompt").fill("the bank shall")
    page.get_by_role("button", name="Send").click()
    page.locator(".answer").wait_for()
