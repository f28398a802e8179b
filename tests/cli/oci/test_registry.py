"""Versions in Debian's OCI registry: pushed and pulled by us and by another ModelPack client, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import oras.client
import oras.schemas
import pytest
from modelpack_client import ModelLayer, ModelPackClient, ModelPackConfig
from modelpack_client.schema import CONFIG_SCHEMA

from adapterhub.accounts.models import User
from adapterhub.cli.oci import registry as oci_registry
from registry.models import Adapter, AdapterVersion, VersionStatus
from registry.uploads import verification
from tests.builders import write_adapter
from tests.builders.ports import free_ports
from tests.cli.command import Command
from tests.tools import program, requires
from tests.waiting import wait_until

pytestmark = requires("docker-registry")
OCI = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
FILES = ("adapter_config.json", "adapter_model.safetensors")
# A hash of the password U*U, as bcrypt's test vectors have it.
USER = "ci:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n"


@contextlib.contextmanager
def running(folder: Path, *, closed: bool = False) -> Iterator[str]:
    """Run Debian's docker-registry, with its bytes in the folder; `closed` asks for a password."""
    [port] = free_ports(1)
    (folder / "users").write_text(USER)
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "stored")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        **({"auth": {"htpasswd": {"realm": "test", "path": str(folder / "users")}}} if closed else {}),
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    command = [program("docker-registry"), "serve", str(folder / "config.yml")]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: answers(port), 30, "the registry answers")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/v2/").status_code in (200, 401)
    return False


@pytest.fixture
def far(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "registry").mkdir()
    with running(tmp_path / "registry") as address:
        yield address


@pytest.fixture
def other(version: AdapterVersion, alice: User) -> Adapter:
    return Adapter.create(
        project=version.project, slug="other", base_model=version.adapter.base_model, by=alice.as_actor()
    )


def files_of(version: AdapterVersion, folder: Path) -> list[bytes]:
    stored = version.stored(folder)
    return [(stored / name).read_bytes() for name in FILES]


@pytest.mark.slow
def test_a_version_leaves_as_a_modelpack_and_comes_back(
    command: Command, version: AdapterVersion, other: Adapter, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The weights go in several parts.
    monkeypatch.setattr(oci_registry, "CHUNK_BYTES", 1000)
    reference = f"{far}/eu/dora:v1"
    done = command("oci", "push", version.served_name, reference, "--plain-http", "--json")
    assert done.returncode == 0, done.stderr
    pushed = json.loads(done.stdout)

    answer = httpx.get(f"http://{far}/v2/eu/dora/manifests/v1", headers=OCI)
    assert answer.headers["Docker-Content-Digest"] == pushed["digest"]
    manifest = answer.json()
    jsonschema.validate(manifest, oras.schemas.manifest)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["annotations"]["io.adapterhub.digest"] == version.digest
    config = httpx.get(f"http://{far}/v2/eu/dora/blobs/{manifest['config']['digest']}").json()
    jsonschema.validate(config, CONFIG_SCHEMA)
    assert (config["descriptor"]["title"], config["config"]["precision"]) == (version.served_name, "F32")
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]

    # Another client of the format, and oras, find the same bytes.
    ours = files_of(version, tmp_path / "ours")
    ModelPackClient(insecure=True).pull(reference, tmp_path / "theirs")
    assert [(tmp_path / "theirs" / name).read_bytes() for name in FILES] == ours
    oras.client.OrasClient(insecure=True).pull(target=reference, outdir=str(tmp_path / "oras"))
    assert [(tmp_path / "oras" / name).read_bytes() for name in FILES] == ours
    assert version.served_name in (tmp_path / "oras/README.md").read_text()

    again = command("oci", "push", version.served_name, reference, "--plain-http", "--json")
    assert json.loads(again.stdout)["digest"] == pushed["digest"]
    back = command("oci", "pull", f"{far}/eu/dora@{pushed['digest']}", "--adapter", "other", "--plain-http", "--json")
    assert back.returncode == 0, back.stderr
    copy = other.versions.get()
    assert copy.lineage["conversions"] == [f"Pulled dora v1 from {far}/eu/dora@{pushed['digest']}."]
    verification.check(copy)
    assert (copy.status, files_of(copy, tmp_path / "copy")) == (VersionStatus.READY, ours)


def packed(path: Path, kind: str) -> Path:
    """Return the file, or an archive beside it in which it lies."""
    if kind == "raw":
        return path
    archive = path.with_name(f"{path.name}.tar")
    with tarfile.open(archive, "w:gz" if kind == "tar+gzip" else "w") as opened:
        opened.add(path, path.name)
    return archive


@pytest.mark.parametrize("kind", ["raw", "tar", "tar+gzip"])
def test_a_modelpack_of_another_client_becomes_a_version(
    command: Command, adapter: Adapter, far: str, tmp_path: Path, kind: str
) -> None:
    folder, reference = write_adapter(tmp_path / "foreign", seed=4), f"{far}/acme/foreign:latest"
    layers = [
        ModelLayer(packed(folder / FILES[0], kind), f"application/vnd.cncf.model.weight.config.v1.{kind}", FILES[0]),
        ModelLayer(packed(folder / FILES[1], kind), f"application/vnd.cncf.model.weight.v1.{kind}", FILES[1]),
    ]
    ModelPackClient(insecure=True).push(reference, layers, ModelPackConfig())
    done = command("oci", "pull", reference, "--adapter", "dora", "--plain-http")
    assert done.returncode == 0, done.stderr
    version = adapter.versions.get()
    assert version.lineage["conversions"][0].startswith(
        f"Pulled a model without a name from {far}/acme/foreign@sha256:"
    )
    weights = (folder / FILES[1]).read_bytes()
    assert files_of(version, tmp_path / "stored")[1] == weights


def test_what_is_no_adapter_or_was_changed_is_refused(
    command: Command, version: AdapterVersion, far: str, tmp_path: Path
) -> None:
    def pull(reference: str) -> tuple[int, str]:
        done = command("oci", "pull", reference, "--adapter", "dora", "--plain-http")
        return done.returncode, done.stderr

    (tmp_path / "notes.txt").write_text("no adapter")
    oras.client.OrasClient(insecure=True).push(
        target=f"{far}/acme/notes:1", files=[str(tmp_path / "notes.txt")], disable_path_validation=True
    )
    code, words = pull(f"{far}/acme/notes:1")
    assert (code, "no ModelPack" in words) == (2, True), words
    code, words = pull(f"{far}/acme/none:1")
    assert (code, "404" in words) == (1, True), words
    assert pull("dora")[0] == 2
    assert pull("127.0.0.1:1/a/b:1")[0] == 1

    reference = f"{far}/eu/dora:v1"
    assert command("oci", "push", version.served_name, reference, "--plain-http").returncode == 0
    layers = httpx.get(f"http://{far}/v2/eu/dora/manifests/v1", headers=OCI).json()["layers"]
    digest = layers[0]["digest"].partition(":")[2]
    blob = tmp_path / f"registry/stored/docker/registry/v2/blobs/sha256/{digest[:2]}/{digest}/data"
    weights = blob.read_bytes()
    for damaged in (weights[:-1] + bytes([weights[-1] ^ 1]), weights[:-9], weights + b"x"):
        blob.write_bytes(damaged)
        code, words = pull(reference)
        assert code == 1, words
    assert AdapterVersion.objects.count() == 1, "nothing was published"


def test_a_closed_registry_takes_the_credentials_of_docker(
    command: Command, version: AdapterVersion, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir()
    with running(tmp_path / "closed", closed=True) as address:
        reference = f"{address}/eu/dora:v1"
        for place, auth, code in (("none", "", 3), ("wrong", "Y2k6d3Jvbmc=", 3), ("right", "Y2k6VSpV", 0)):
            (tmp_path / place / ".docker").mkdir(parents=True)
            known = {"auths": {address: {"auth": auth}} if auth else {}}
            (tmp_path / place / ".docker/config.json").write_text(json.dumps(known))
            done = command("oci", "push", version.served_name, reference, "--plain-http", HOME=str(tmp_path / place))
            assert done.returncode == code, done.stderr
            assert "U*U" not in done.stderr
