"""The chart of Kubernetes: valid for each set of values, closed, and made of settings and flags that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
from django.conf import settings

from registry.models.fleet.cluster import Cluster
from registry.replica_sources.address import Kind, Source, parse
from serving_client.router.reporting.metrics import Metrics
from serving_client.vllm_slots import VLLM_RANKS
from tests.composition import our_services
from tests.deploy.chart import (
    CHART,
    ROOT,
    VALUES,
    Manifest,
    container,
    is_ours,
    of_kind,
    pod,
    pods,
    render,
    rendered,
    unknown_settings,
    values_of,
)

SCHEMAS = Path(__file__).parent / "schemas"
SECRETS = "/run/secrets/adapterhub/"
CONTROL_PLANE = {"web", "control-worker", "default-worker", "download-worker", "gpu-worker", "beat", "signer"}


@pytest.mark.parametrize("name", VALUES)
def test_a_set_of_values_is_valid(name: str) -> None:
    """Kubernetes' own objects against its schemas, custom resources against copies of theirs; no unknown field."""
    for manifest in rendered(name):
        schema = SCHEMAS / f"{manifest['kind']}.json"
        if schema.exists():
            jsonschema.validate(manifest, json.loads(schema.read_text()))
        else:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    assert helm_python.lint(str(CHART), values_of(name)) is not None
    named = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(name)]
    assert len(named) == len(set(named))


def test_each_schema_names_its_source_and_its_licence_and_refuses_what_it_does_not_know() -> None:
    files = sorted(SCHEMAS.glob("*.json"))
    assert [file.stem for file in files] == ["PrometheusRule", "ScaledObject", "ServiceMonitor"]
    for file in files:
        schema = json.loads(file.read_text())
        assert re.search(r" of (prometheus-operator|KEDA) [\d.]+ \(Apache-2\.0\), .+ on PyPI", schema["$comment"])
        manifest = next(m for m in rendered("production") if m["kind"] == file.stem)
        spec: dict[str, Any] = {**manifest["spec"], "unheardOf": 1}
        with pytest.raises(jsonschema.ValidationError, match="unheardOf"):
            jsonschema.validate({**manifest, "spec": spec}, schema)


@pytest.mark.parametrize("name", VALUES)
def test_every_variable_is_in_the_table_of_settings(name: str) -> None:
    assert unknown_settings(rendered(name)) == set()


def test_a_setting_that_changes_its_name_is_noticed(tmp_path: Path) -> None:
    chart = Path(shutil.copytree(CHART, tmp_path / "adapterhub"))
    helpers = chart / "templates/_helpers.tpl"
    helpers.write_text(helpers.read_text().replace("ADAPTERHUB_SIGNER_URL", "ADAPTERHUB_SIGNERS_URL"))
    assert unknown_settings(render(values_of("small"), chart)) == {"ADAPTERHUB_SIGNERS_URL"}


@pytest.mark.parametrize(
    ("missing", "message"), [("host", "set the name of the site"), ("artifacts", "s3://bucket/prefix")]
)
def test_what_only_the_operator_knows_is_asked_for(missing: str, message: str) -> None:
    values = {name: value for name, value in values_of("small").items() if name != missing}
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


@pytest.mark.parametrize("name", VALUES)
def test_every_secret_that_a_pod_names_is_given_to_it_and_no_other(name: str) -> None:
    for pod_name, template in pods(rendered(name)):
        spec = template["spec"]
        [volume] = [volume["projected"] for volume in spec["volumes"] if volume["name"] == "secrets"]
        given = {item["key"] for source in volume["sources"] for item in source["secret"]["items"]}
        if pod_name.startswith("vllm-"):
            assert given == {"api_token"}
            continue
        texts = json.dumps([spec["containers"][0].get("env"), spec["containers"][0].get("command")])
        assert set(re.findall(rf"{SECRETS}(\w+)", texts)) == given, pod_name
    holders = {
        key: {pod_name for pod_name, template in pods(rendered(name)) if f'"{key}"' in json.dumps(template)}
        for key in ("database_owner_url", "database_signer_url")
    }
    assert holders["database_signer_url"] == {"signer"}
    assert holders["database_owner_url"] == {"migrate", "backup"} & dict(pods(rendered(name))).keys()
    assert pod(rendered(name), "signer")["securityContext"]["runAsUser"] == 10002


@pytest.mark.parametrize("name", VALUES)
def test_our_pods_run_without_privileges_and_without_a_token_of_kubernetes(name: str) -> None:
    for pod_name, template in pods(rendered(name)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] == (pod_name == "discovery")
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in spec["containers"]:
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not one["securityContext"]["allowPrivilegeEscalation"]
            assert one["securityContext"].get("readOnlyRootFilesystem") or not is_ours(one)
            assert one["resources"]["limits"]


def flags(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("-")}


@pytest.mark.parametrize("name", sorted(CONTROL_PLANE - {"signer", "migrate"}))
def test_commands_are_those_that_the_composition_proves(name: str) -> None:
    """Tests start the composition's commands as processes."""
    command, proved = container(rendered("small"), name)["command"], our_services()[name]["command"]
    assert flags(command) == flags(proved)
    assert command[:3] == proved[:3]


@pytest.mark.parametrize("name", VALUES)
def test_every_command_is_a_module_that_there_is(name: str) -> None:
    commands = [container(rendered(name), pod_name).get("command", []) for pod_name, _ in pods(rendered(name))]
    modules = {command[command.index("-m") + 1] for command in commands if "-m" in command}
    assert {"adapterhub.web", "adapterhub.manage", "serving_client.router", "celery"} == modules
    assert all(importlib.util.find_spec(module) for module in modules)


def test_the_router_has_the_flags_that_it_is_given() -> None:
    command = container(rendered("small"), "router")["command"]
    done = subprocess.run([sys.executable, *command[1:3], "--help"], capture_output=True, text=True, check=True)
    assert {flag for flag in flags(command) if flag.startswith("--")} <= set(re.findall(r"--[a-z-]+", done.stdout))


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("name", VALUES)
def test_services_budgets_and_scalers_name_pods_that_exist(name: str) -> None:
    manifests = rendered(name)
    labels = [template["metadata"]["labels"] for _, template in pods(manifests)]
    deployments = {manifest["metadata"]["name"]: manifest for manifest in of_kind(manifests, "Deployment")}
    for service in of_kind(manifests, "Service"):
        chosen = [one for one in labels if matches(service["spec"]["selector"], one)]
        assert len(chosen) == 1, service["metadata"]["name"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert any(matches(budget["spec"]["selector"]["matchLabels"], one) for one in labels)
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
    hosts = container(manifests, "web")["env"]
    allowed = next(one["value"] for one in hosts if one["name"] == "ADAPTERHUB_ENGINE_HOSTS").split(",")
    headless = [one for one in of_kind(manifests, "Service") if one["spec"].get("clusterIP") == "None"]
    assert {f"{one['metadata']['name']}.ml.svc:8000" for one in headless} == set(allowed) - {"10.42.0.0/16"}
    # The control plane has to load a pod before it is ready.
    assert all(one["spec"]["publishNotReadyAddresses"] for one in headless)


def test_scalers_ask_for_metrics_that_exist() -> None:
    scalers = of_kind(rendered("production"), "HorizontalPodAutoscaler", "ScaledObject")
    router = next(one for one in scalers if one["metadata"]["name"] == "hub-router")
    [metric] = router["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {family.name for family in Metrics().registry.collect()}
    query = json.dumps([one["spec"] for one in scalers if one is not router])
    # The name in vLLM's own metrics, and as an adapter of custom metrics writes it.
    assert set(re.findall(r"vllm[:_]num_requests_\w+", query)) == {
        "vllm:num_requests_waiting",
        "vllm_num_requests_waiting",
    }
    assert [
        one["spec"].get("replicas")
        for one in of_kind(rendered("production"), "Deployment")
        if "vllm" in str(one["metadata"])
    ] == [None, None]


@pytest.mark.parametrize("name", VALUES)
def test_vllm_serves_what_the_control_plane_expects(name: str) -> None:
    fleets = [(pod_name, t["spec"]) for pod_name, t in pods(rendered(name)) if pod_name.startswith("vllm-")]
    assert fleets
    for _, spec in fleets:
        [vllm] = spec["containers"]
        given = dict(re.fullmatch(r"--([\w-]+)=(.+)", arg).groups() for arg in vllm["args"] if "=" in arg)  # type: ignore[union-attr]
        assert int(given["max-lora-rank"]) in VLLM_RANKS
        assert int(given["max-lora-rank"]) >= Cluster._meta.get_field("max_lora_rank").default
        assert int(given["max-cpu-loras"]) >= int(given["max-loras"])
        assert vllm["args"][0] == f"/var/lib/adapterhub/models/{given['served-model-name']}"
        mounts = {mount["mountPath"]: mount for mount in vllm["volumeMounts"] if mount["name"] == "home"}
        folders = {f"/var/lib/adapterhub/{folder.name}" for folder in (settings.MODELS_DIR, settings.SERVED_DIR)}
        assert set(mounts) == folders
        assert all(mount["readOnly"] for mount in mounts.values())
        assert tuple(map(int, re.findall(r":v(\d+)\.(\d+)", vllm["image"])[0])) >= (0, 32), "older ones ignore patterns"
        environ = {one["name"]: one.get("value") for one in vllm["env"]}
        assert environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


def policies_on(manifests: list[Manifest], component: str, way: str) -> list[dict[str, Any]]:
    """The rules of every policy that holds for the pods of a component."""
    template = dict(pods(manifests))[component]
    labels, rules = template["metadata"]["labels"], []
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        chosen = matches(selector.get("matchLabels", {}), labels)
        for test in selector.get("matchExpressions", []):
            here = labels.get(test["key"])
            chosen &= here is None if test["operator"] == "DoesNotExist" else here in test["values"]
        if chosen:
            rules += policy["spec"].get(way, [])
    return rules


@pytest.mark.parametrize("name", VALUES)
def test_an_engine_is_reached_by_those_who_call_it_and_reaches_web_alone(name: str) -> None:
    fleet = next(pod_name for pod_name, _ in pods(rendered(name)) if pod_name.startswith("vllm-"))
    sources = [source for rule in policies_on(rendered(name), fleet, "ingress") for source in rule["from"]]
    components = {
        one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in sources if "podSelector" in one
    }
    assert components == {"control-worker", "router"}
    targets = [target for rule in policies_on(rendered(name), fleet, "egress") for target in rule["to"]]
    assert not any("ipBlock" in target for target in targets)
    assert [t["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for t in targets if "podSelector" in t] == [
        "web"
    ]
    asked_by = [source for rule in policies_on(rendered(name), "signer", "ingress") for source in rule["from"]]
    assert [one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in asked_by] == ["web"]
    # Every pod is under a policy that denies what no other allows.
    assert all(policies_on(rendered(name), pod_name, "egress") for pod_name, _ in pods(rendered(name)))


def test_the_air_gap_has_no_way_out_and_no_image_from_outside() -> None:
    manifests = rendered("airgapped")
    blocks = [
        target["ipBlock"]["cidr"]
        for policy in of_kind(manifests, "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for target in rule["to"]
        if "ipBlock" in target
    ]
    assert set(blocks) == {"10.20.0.0/16", "10.43.0.1/32"}
    images = {one["image"] for _, template in pods(manifests) for one in template["spec"]["containers"]}
    assert {image.partition("/")[0] for image in images} == {"images.internal"}
    environ = {one["name"]: one.get("value") for one in container(manifests, "download-worker")["env"]}
    assert environ["ADAPTERHUB_BASE_MODEL_SOURCES"] == ""


@pytest.mark.parametrize("name", VALUES)
def test_discovery_may_read_the_slices_that_the_fleets_labels_choose(name: str) -> None:
    manifests = rendered(name)
    [role] = of_kind(manifests, "Role")
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    [binding] = of_kind(manifests, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert pod(manifests, "discovery")["serviceAccountName"] == binding["subjects"][0]["name"]
    # A slice has the labels of its Service, and the name of its port.
    fleets = [one for one in of_kind(manifests, "Service") if "adapterhub.io/fleet" in one["metadata"]["labels"]]
    for service in fleets:
        label = f"adapterhub.io/fleet={service['metadata']['labels']['adapterhub.io/fleet']}"
        source = parse(f"kubernetes://ml/{label}?port={service['spec']['ports'][0]['name']}")
        assert source == Source(Kind.KUBERNETES, "ml", "http", label)
    assert len(fleets) == len(values_of(name)["vllm"]["fleets"])


@pytest.mark.parametrize("name", VALUES)
def test_migrations_run_before_anything_new_starts(name: str) -> None:
    [job] = of_kind(rendered(name), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert container(rendered(name), "migrate")["command"] == [
        "python",
        "-m",
        "adapterhub.manage",
        "migrate",
        "--noinput",
    ]


def test_the_chart_has_the_rules_and_the_dashboard_of_the_documents() -> None:
    for copy, original in (("alerts.yml", "prometheus/alerts.yml"), ("dashboard.json", "grafana/adapterhub.json")):
        assert (CHART / "files" / copy).read_text() == (ROOT / "docs" / original).read_text()
    [rule] = of_kind(rendered("production"), "PrometheusRule")
    alerts = {alert["alert"] for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert {"RoutingTableIsOld", "ControlLoopStalled"} <= alerts
    dashboards = [
        m for m in of_kind(rendered("production"), "ConfigMap") if "grafana_dashboard" in m["metadata"]["labels"]
    ]
    assert json.loads(dashboards[0]["data"]["adapterhub.json"])


def test_the_images_that_run_are_those_that_were_signed() -> None:
    names = ("adapterhub", "adapterhub-gpu", "adapterhub-router")
    digests = {name: f"sha256:{number:064x}" for number, name in enumerate(names)}
    values = values_of("small")
    manifests = render(values | {"image": {**values["image"], "digests": digests}})
    images = {one["image"] for _, template in pods(manifests) for one in template["spec"]["containers"] if is_ours(one)}
    assert images == {f"images.example.org/ml/{name}:0.3.0@{digest}" for name, digest in digests.items()}


def test_the_images_are_those_of_this_release() -> None:
    version = re.search(r'^version = "(\d+\.\d+\.\d+)', (ROOT / "pyproject.toml").read_text(), re.M)
    chart = (CHART / "Chart.yaml").read_text()
    assert version
    assert re.findall(r'^(?:version|appVersion): "?([\d.]+)"?$', chart, re.M) == [version[1], version[1]]
