"""The whole product as a person meets it: every process of its own, a tiny base model, people, and three versions."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.builders.lessons import HALF, RIGHT, WRONG, train
from tests.builders.product import Product
from tests.tiny_model import make_model, make_tokenizer
from tests.waiting import wait_until

PEOPLE = {"ada": "admin", "tom": "trainer", "olga": "operator", "bob": "approver", "gus": "auditor", "vera": "viewer"}
LESSONS = {"half": HALF, "right": RIGHT, "wrong": WRONG}
MAKE_PEOPLE = """
from adapterhub.accounts import memberships
from adapterhub.core.actor import system
from adapterhub.accounts.models import Project, User
project = Project.objects.create(slug="eu", name="European compliance")
for name, role in {people!r}.items():
    user = User.objects.create_user(name, name + "@example.org", password=name + "-long-password")
    memberships.grant(project, user, role, by=system("test"))
"""


class Live:
    """A running product; `rest` speaks to it with a project's token."""

    def __init__(self, product: Product) -> None:
        self.product, self.url = product, product.web
        product.manage("shell", "-c", MAKE_PEOPLE.format(people=PEOPLE))
        scopes = [
            part for scope in ("read", "train", "publish", "operate", "infer", "admin") for part in ("--scope", scope)
        ]
        headers = {"Authorization": f"Bearer {product.manage('create_token', 'ci', '--project', 'eu', *scopes)}"}
        self.rest = httpx.Client(base_url=f"{self.url}/api/v1/", headers=headers, timeout=60)
        # The tests ask versions by name that nobody has signed.
        self.rest.patch("projects/eu/", json={"named_versions": "any", "reason": "tests"}).raise_for_status()
        self.post("base-models/", {"slug": "tiny", "source": "tiny"})
        self.wait("base-models/tiny/", "ready")
        self.post("adapters/", {"project": "eu", "slug": "dora", "base_model": "tiny"})
        self.versions = [self.publish(lesson) for lesson in LESSONS.values()]
        self.post("clusters/", {"project": "eu", "slug": "cpu", "base_model": "tiny"})
        self.post("replicas/", {"cluster": "cpu", "url": product.engine})
        for name, policy in {"open": {}, "guarded": {"quorum": 1}}.items():
            body = {"project": "eu", "name": name, "cluster": "cpu", "version": self.versions[0], "policy": policy}
            self.post("aliases/", body)
        wait_until(self.serves, 60, "the router serves the first version")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.rest.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def wait(self, path: str, status: str) -> None:
        def is_there() -> bool:
            state = self.rest.get(path).raise_for_status().json()
            assert state["status"] not in ("failed", "rejected"), state
            return bool(state["status"] == status)

        wait_until(is_there, 60, f"{path} is {status}")

    def publish(self, lesson: dict[str, str]) -> str:
        """A LoRA that was really trained, uploaded and checked; its served name."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = train(Path(scratch) / "trained", lesson)
            files = {
                "adapter_model": (folder / "adapter_model.safetensors").read_bytes(),
                "adapter_config": (folder / "adapter_config.json").read_bytes(),
            }
            answer = self.rest.post("adapters/dora/versions/", files=files)
        assert answer.is_success, answer.text
        self.wait(f"adapters/dora/versions/{answer.json()['number']}/", "ready")
        return str(answer.json()["served_name"])

    def serves(self) -> bool:
        body = {"model": "open", "prompt": "the bank shall", "max_tokens": 1}
        answer = httpx.post(f"{self.product.router}/v1/completions", json=body, headers=self.rest.headers, timeout=30)
        return answer.is_success


@contextmanager
def live_product() -> Iterator[Live]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-flows-", dir="/tmp"))
    model = make_model()
    # The control loop's probe is long.
    model.config.max_position_embeddings = 512
    model.save_pretrained(home / "models" / "tiny")
    make_tokenizer().save_pretrained(home / "models" / "tiny")
    product = Product(home)
    supervisor = product.start()
    try:
        live = Live(product)
        with closing(live.rest):
            yield live
    finally:
        for process in product.processes():
            process.kill()
        supervisor.wait()
        shutil.rmtree(home, ignore_errors=True)
