"""From an empty installation to a version that is promoted and rolled back, and the question who allowed it: by clicks
alone, on every process of the real product. No REST call and no admin page; each step leaves a picture."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.product import Product
from tests.tiny_model import make_model, make_tokenizer, sentences, write_jsonl
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
PATIENCE_MS = 240_000
PASSWORD = "a quite long password"  # noqa: S105
SMALL_RUN = {"steps": "6", "batch_size": "2", "max_length": "32"}


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    """The product as `make run` starts it in an empty folder, but for a tiny base model."""
    home = Path(tempfile.mkdtemp(prefix="adapterhub-story-", dir="/tmp"))
    model = make_model()
    # The control loop's probe is long.
    model.config.max_position_embeddings = 512
    model.save_pretrained(home / "models" / "tiny")
    make_tokenizer().save_pretrained(home / "models" / "tiny")
    running = Product(home)
    # The embedded engine is allowed, and proposed, where the operator says nothing.
    running.environ.pop("ADAPTERHUB_ENGINE_HOSTS", None)
    supervisor = running.start()
    try:
        yield running
    finally:
        for process in running.processes():
            process.kill()
        supervisor.wait()
        shutil.rmtree(home, ignore_errors=True)


class Person:
    """A person in a browser of their own, whose clicks are counted; `done` takes a picture of what they reached."""

    pictures = 0

    def __init__(self, browser: Any, url: str, folder: Path) -> None:
        self.context = browser.new_context(base_url=url, viewport={"width": 1440, "height": 900})
        self.page, self.folder, self.clicks = self.context.new_page(), folder, 0
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self.note)

    def note(self, message: Any) -> None:
        # A form that is refused is a 422, which the browser calls an error; none is expected here either.
        if message.type == "error":
            self.errors.append(message.text)

    def click(self, role: str, name: str | re.Pattern[str]) -> None:
        self.page.get_by_role(role, name=name).first.click()
        self.clicks += 1

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            self.page.locator(f"#id_{name}").fill(value)

    def sees(self, text: str | re.Pattern[str]) -> None:
        self.page.get_by_text(text).first.wait_for()

    def done(self, step: str) -> None:
        Person.pictures += 1
        self.page.screenshot(path=self.folder / f"{Person.pictures:02}-{step}.png", full_page=True)
        assert "/admin/" not in self.page.url
        assert "/api/" not in self.page.url


def link_of(product: Product) -> str:
    links = re.findall(r"^http\S+/setup/\S+$", product.output.read_text(), re.M)
    return str(links[-1]) if links else ""


def first_account(ada: Person, product: Product) -> None:
    wait_until(lambda: link_of(product) != "", 60, "the terminal shows the link")
    ada.page.goto(link_of(product))
    ada.fill(username="ada", email="ada@example.org", password1=PASSWORD, password2=PASSWORD)
    ada.done("first-account")
    ada.click("button", "Create the account")
    ada.page.get_by_role("heading", name="First steps").wait_for()
    ada.done("first-steps")


def next_step(person: Person, action: str) -> None:
    """Go on with the checklist, as its one button says."""
    person.page.goto("/first-steps/")
    person.page.locator("a.button", has_text=action).click()
    person.clicks += 1


def set_up(ada: Person) -> None:
    next_step(ada, "Create a project")
    ada.fill(name="European compliance", slug="eu")
    ada.click("button", "Create the project")
    ada.sees("and you are its admin")
    ada.done("project")
    next_step(ada, "Add a base model")
    ada.click("button", "Add the base model")
    ada.page.locator(".badge", has_text="ready").wait_for()
    ada.done("base-model")
    next_step(ada, "Name the engines")
    ada.click("button", "Create the cluster")
    ada.sees("is there with 1 replica")
    ada.done("cluster")


def add_data(ada: Person, file: Path) -> None:
    wait_until(lambda: ada.page.goto("/first-steps/") and "Add a dataset" in button_of(ada), 60, "a healthy replica")
    next_step(ada, "Add a dataset")
    ada.page.get_by_label("File").set_input_files(file)
    ada.click("button", "Check and store it")
    ada.page.get_by_role("heading", name="rows", exact=True).wait_for()
    ada.done("dataset")


def button_of(person: Person) -> str:
    return " ".join(person.page.locator("main a.button").all_inner_texts())


def train_first_version(ada: Person) -> None:
    next_step(ada, "Create an adapter")
    ada.fill(slug="dora")
    ada.click("button", "Create the adapter")
    ada.done("adapter")
    next_step(ada, "Train a version")
    ada.fill(**SMALL_RUN)
    ada.click("button", "Queue the run")
    ada.page.get_by_role("link", name="Roll it out").wait_for()
    ada.done("training")


def serve(ada: Person) -> None:
    next_step(ada, "Serve a version")
    ada.fill(name="compliance", quorum="1")
    ada.click("button", "Serve it")
    ada.sees("Applications that send compliance as model get dora v1")
    ada.done("alias")
    ada.page.goto("/first-steps/")
    ada.sees("All done")
    ada.done("all-done")


def invite(ada: Person) -> str:
    """Create an account for the approver; return the link to send them."""
    ada.page.goto("/settings/")
    ada.click("link", "People and their accounts")
    ada.fill(username="bob", email="bob@example.org")
    ada.page.locator("#id_role").select_option("approver")
    ada.click("button", "Create the account")
    ada.done("people")
    return str(ada.page.locator("pre").inner_text().strip())


def join(bob: Person, link: str) -> None:
    bob.page.goto(link)
    bob.fill(new_password1=PASSWORD, new_password2=PASSWORD)
    bob.click("button", "Sign in")
    bob.click("button", re.compile("^Accept"))
    bob.sees("You now have the role approver in European compliance.")
    bob.done("invitation")


def train_second_version(ada: Person) -> None:
    ada.page.goto("/")
    ada.click("link", re.compile("^dora$"))
    ada.fill(**SMALL_RUN, learning_rate="0.002")
    ada.click("button", "Queue the run")
    ada.page.get_by_role("link", name="Roll it out").wait_for()


def open_rollout(ada: Person) -> str:
    ada.click("link", "Roll it out")
    ada.page.locator("#id_reason").fill("trained again at another rate")
    ada.click("button", "Start the rollout")
    ada.sees(re.compile("plan is signed"))
    ada.done("rollout")
    return str(ada.page.url)


def approve(bob: Person) -> None:
    bob.page.goto("/")
    bob.page.locator("#waiting").get_by_role("link", name="Promotion of compliance").click()
    bob.page.locator("#sign_reason").fill("The held-out loss is lower.")
    bob.done("evidence")
    bob.click("button", "Sign and approve")
    bob.sees("is approved")
    bob.done("approval")


def promote_and_roll_back(ada: Person, rollout: str) -> None:
    ada.page.goto("/")
    before = ada.clicks
    ada.click("link", "compliance")
    ada.sees(re.compile("get the candidate"))
    ada.page.locator("#promote-reason").fill("it holds")
    ada.click("button", re.compile("^Promote"))
    ada.sees("Everybody gets dora v2")
    assert ada.clicks - before <= 2
    ada.done("promoted")
    ada.page.goto("/")
    before = ada.clicks
    ada.page.locator(f"a[href='{rollout.removeprefix(ada.page.url.rstrip('/'))}']").first.click()
    ada.clicks += 1
    ada.page.locator("#rollback-reason").fill("3 a.m.")
    ada.click("button", "Roll back")
    ada.sees("Everybody gets dora v1")
    assert ada.clicks - before <= 2
    ada.done("rolled-back")


def who_allowed_it(ada: Person) -> None:
    """The alias says what it served when; the time at which v2 began names who signed, and why."""
    ada.page.goto("/")
    ada.page.locator("#aliases").get_by_role("link", name="compliance").click()
    ada.page.get_by_role("row").filter(has_text="dora v2").get_by_role("link").first.click()
    ada.sees("The held-out loss is lower.")
    assert "bob" in ada.page.locator("main").inner_text()
    ada.done("who-allowed-it")


def test_from_nothing_to_promoted_and_rolled_back(browser: Any, product: Product, tmp_path: Path) -> None:
    ada, bob = (Person(browser, product.web, tmp_path) for _ in range(2))
    first_account(ada, product)
    set_up(ada)
    add_data(ada, write_jsonl(tmp_path / "rows.jsonl", sentences(120)))
    train_first_version(ada)
    serve(ada)
    join(bob, invite(ada))
    train_second_version(ada)
    rollout = open_rollout(ada)
    approve(bob)
    # Her page renews itself.
    ada.sees(re.compile("get the candidate"))
    promote_and_roll_back(ada, rollout)
    who_allowed_it(ada)
    assert ada.errors + bob.errors == []
    assert len(list(tmp_path.glob("*.png"))) >= 15
