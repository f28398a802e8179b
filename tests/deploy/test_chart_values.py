"""Values that a platform team brings to the chart: each is honoured in every pod, or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from adapterhub.environment import TABLE
from tests.deploy.chart import CHART, Manifest, container, known, of_kind, pod, pods, render, values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
FLEET: dict[str, Any] = values_of("small")["vllm"]["fleets"][0]


def with_values(name: str = "small", **values: Any) -> list[Manifest]:
    manifests = render(values_of(name) | values)
    for manifest in manifests:
        if "monitoring" not in manifest["apiVersion"] and "keda" not in manifest["apiVersion"]:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    return manifests


def test_each_value_of_the_chart_is_in_the_schema_and_no_other() -> None:
    def compare(values: Any, schema: dict[str, Any], place: str) -> None:
        if "properties" in schema and schema.get("additionalProperties") is False:
            assert not values or values.keys() == schema["properties"].keys() - {"global"}, place
            for name, value in (values or {}).items():
                compare(value, schema["properties"][name], f"{place}.{name}")

    schema = json.loads(json.dumps(SCHEMA))
    # Each digest is of an image; `resources` are Kubernetes' own.
    schema["properties"]["image"]["properties"]["digests"] = {}
    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_the_schema_knows_the_settings_of_the_table() -> None:
    assert SCHEMA["properties"]["settings"]["propertyNames"]["enum"] == sorted(TABLE)
    secret = sorted(name for name, setting in TABLE.items() if setting.secret)
    assert SCHEMA["properties"]["secretSettings"]["propertyNames"]["enum"] == secret
    assert all(known(f"{name}_FILE") for name in secret)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"webb": {}}, "'webb' not allowed"),
        ({"web": {"replica": 3}}, "/web.*'replica' not allowed"),
        ({"web": {"resources": {"limit": {"memory": "1Gi"}}}}, "/web/resources.*'limit' not allowed"),
        ({"host": "https://hub.example.org"}, "/host"),
        ({"gpuWorker": {"replicas": "2"}}, "/gpuWorker/replicas.*want integer"),
        ({"settings": {"ADAPTERHUB_MLFLOW_URI": "http://x"}}, "ADAPTERHUB_MLFLOW_URI"),
        ({"settings": {"ADAPTERHUB_HOSTS": "x"}}, "settings: the chart sets ADAPTERHUB_HOSTS itself"),
        ({"settings": {"DATABASE_URL": "x"}}, "settings: the chart sets DATABASE_URL itself"),
        ({"secretSettings": {"ADAPTERHUB_PORT": "port"}}, "ADAPTERHUB_PORT"),
        ({"secretKeys": {"databse_url": {"name": "a", "key": "b"}}}, "secretKeys: nothing reads databse_url"),
        ({"pods": {"env": [{"name": "REDIS_URL_FILE", "value": "x"}]}}, "pods.env: REDIS_URL_FILE is set already"),
        ({"vllm": {"fleets": [{**FLEET, "name": "a_b"}]}}, "/vllm/fleets/0/name"),
        ({"vllm": {"fleets": [{**FLEET, "name": "a" * 58}]}}, "of 67 characters: 63 are allowed"),
        ({"vllm": {"fleets": [FLEET, FLEET]}}, "vllm.fleets: qwen is there twice"),
        ({"vllm": {"fleets": [{**FLEET, "maxLoraRank": 48}]}}, "/vllm/fleets/0/maxLoraRank"),
        ({"vllm": {"fleets": [{**FLEET, "autoscaling": {"kind": "vpa"}}]}}, "/vllm/fleets/0/autoscaling"),
        ({"vllm": {"fleets": [{"name": "qwen"}]}}, "missing properties.*baseModel"),
    ],
)
def test_a_value_that_the_chart_cannot_honour_is_refused_by_its_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=f"(?s){message}"):
        render(values_of("small") | values)


def test_a_releases_name_leaves_room_for_those_of_its_objects() -> None:
    names = [manifest["metadata"]["name"] for manifest in render(values_of("production"), name="r" * 45)]
    assert max(len(name) for name in names if name.endswith("-backup")) <= 52
    assert max(map(len, names)) <= 63
    with pytest.raises(helm_python.HelmError, match="at most 45 characters"):
        render(values_of("small"), name="r" * 46)


def test_two_releases_in_a_namespace_share_nothing_and_choose_no_pod_of_each_other() -> None:
    one, two = (render(values_of("production"), name=name) for name in ("one", "two"))
    named = [{(m["kind"], m["metadata"]["name"]) for m in manifests} for manifests in (one, two)]
    assert named[0] & named[1] == set()
    for manifest in [*one, *two]:
        instance = manifest["metadata"]["labels"]["app.kubernetes.io/instance"]
        spec = manifest.get("spec") or {}
        for key in ("selector", "podSelector"):
            if key in spec:
                chosen = spec[key].get("matchLabels", spec[key])
                assert chosen["app.kubernetes.io/instance"] == instance, manifest["metadata"]["name"]


def test_secrets_may_lie_where_others_put_them() -> None:
    keys = {"database_url": {"name": "postgres-app", "key": "uri"}, "redis_url": {"name": "valkey", "key": "url"}}
    manifests = with_values("production", existingSecret="hub-secrets", secretKeys=keys)
    [volume] = [one for one in pod(manifests, "web")["volumes"] if one["name"] == "secrets"]
    sources = {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    assert sources["database_url"] == ("postgres-app", "uri")
    assert sources["secret_key"] == ("hub-secrets", "secret_key")
    [redis] = [one for one in container(manifests, "router")["env"] if one["name"] == "REDIS_URL"]
    assert redis["valueFrom"]["secretKeyRef"] == {"name": "valkey", "key": "url"}
    assert '"adapterhub"' not in json.dumps([m for m in manifests if m["kind"] == "ServiceMonitor"]).replace(
        '"app.kubernetes.io/name": "adapterhub"', ""
    )


def test_every_pod_goes_where_the_platform_says() -> None:
    tolerations = [{"key": "team", "operator": "Equal", "value": "ml", "effect": "NoSchedule"}]
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    wishes = {
        "nodeSelector": {"pool": "ml"},
        "tolerations": tolerations,
        "priorityClassName": "platform",
        "labels": {"cost-centre": "42", "app.kubernetes.io/name": "other"},
        "annotations": {"sidecar.istio.io/inject": "false"},
        "env": [proxy],
        "affinity": {"nodeAffinity": {}},
    }
    fleet = {**FLEET, "nodeSelector": {"pool": "h200"}, "tolerations": [{"key": "h200", "operator": "Exists"}]}
    backup = {"enabled": True, "existingClaim": "backups"}
    values: dict[str, Any] = {
        "pods": wishes,
        "backup": backup,
        "vllm": {"fleets": [{**fleet, "env": [{"name": "A", "value": "1"}]}]},
    }
    for name, template in pods(
        with_values(**values, image={"registry": "x", "pullSecrets": [{"name": "reg"}, "more"]})
    ):
        spec, metadata = template["spec"], template["metadata"]
        is_engine = name == "vllm-qwen"
        assert spec["nodeSelector"] == {"pool": "h200" if is_engine else "ml"}, name
        assert tolerations[0] in spec["tolerations"], name
        assert spec["priorityClassName"] == "platform"
        assert spec["affinity"] == wishes["affinity"]
        assert (metadata["labels"]["cost-centre"], metadata["labels"]["app.kubernetes.io/name"]) == ("42", "adapterhub")
        assert metadata["annotations"] == wishes["annotations"]
        assert spec["imagePullSecrets"] == [{"name": "reg"}, {"name": "more"}]
        assert proxy in spec["containers"][0]["env"], name
        if is_engine:
            keys = [one["key"] for one in spec["tolerations"]]
            assert keys == ["nvidia.com/gpu", "h200", "team"]
            assert {"name": "A", "value": "1"} in spec["containers"][0]["env"]


def test_who_touches_artifacts_has_the_platforms_role() -> None:
    backup = {"enabled": True, "existingClaim": "backups"}
    manifests = with_values(pods={"serviceAccountName": "bucket"}, backup=backup)
    holders = {name for name, template in pods(manifests) if template["spec"].get("serviceAccountName") == "bucket"}
    assert holders == {"web", "control-worker", "default-worker", "download-worker", "gpu-worker", "backup"}
    assert not any(
        template["spec"].get("automountServiceAccountToken") for name, template in pods(manifests) if name in holders
    )


def test_a_platform_that_gives_users_itself_is_not_told_one() -> None:
    for _, template in pods(render(values_of("small") | {"podSecurity": {"runAsUser": None, "fsGroup": None}})):
        assert template["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    given = {"podSecurity": {"runAsUser": 1000660000, "fsGroup": 1000660000}}
    for name, template in pods(render(values_of("small") | given)):
        context = template["spec"]["securityContext"]
        assert (context["runAsUser"], context["fsGroup"]) == (10002 if name == "signer" else 1000660000, 1000660000)


@pytest.mark.parametrize(
    ("ingress", "expected"),
    [
        (
            {"className": "traefik", "tlsSecret": "own", "annotations": {"a/b": "c"}},
            ("traefik", {"a/b": "c"}, [{"hosts": ["hub.example.org"], "secretName": "own"}]),
        ),
        ({"className": "", "tlsSecret": ""}, (None, None, [{"hosts": ["hub.example.org"]}])),
        ({"enabled": False}, None),
    ],
)
def test_an_ingress_takes_the_class_and_the_certificate_that_there_are(ingress: Any, expected: Any) -> None:
    made = [
        (
            manifest["spec"].get("ingressClassName"),
            manifest["metadata"].get("annotations"),
            manifest["spec"]["tls"],
        )
        for manifest in of_kind(render(values_of("small") | {"ingress": ingress}), "Ingress")
    ]
    assert made == ([expected] if expected else [])


def test_resources_are_added_to_and_scaling_is_off_where_it_is_said() -> None:
    web = {"resources": {"limits": {"memory": "16Gi", "cpu": "8"}}}
    manifests = with_values(web=web, gpuWorker={"replicas": 0}, router={"replicas": 5})
    assert container(manifests, "web")["resources"] == {
        "requests": {"cpu": "1", "memory": "1Gi"},
        "limits": {"memory": "16Gi", "cpu": "8"},
    }
    deployments = {one["metadata"]["name"]: one for one in of_kind(manifests, "Deployment")}
    assert "hub-gpu-worker" not in deployments
    assert (deployments["hub-router"]["spec"]["replicas"], deployments["hub-vllm-qwen"]["spec"]["replicas"]) == (5, 1)
    assert of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject") == []
