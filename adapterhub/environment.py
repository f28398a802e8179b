"""The table of all settings: every environment variable that AdapterHub reads. No other module reads os.environ.

Imports no Django, so that the supervisor can explain a bad value before anything starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

# Libraries of Hugging Face report their use to its servers unless told otherwise. Our children inherit this.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# What usage has prices for.
PRICED = ("prompt", "completion", "gpu_hour", "cold_load")


class BadSetting(ValueError):
    """Raised for a variable whose value cannot be used; the message names the variable and the fix."""


@dataclass(frozen=True)
class Setting:
    """An environment variable: its default as text, its meaning, and whether its value is secret."""

    name: str
    default: str
    meaning: str
    secret: bool = False


TABLE = {
    setting.name: setting
    for setting in (
        Setting("ADAPTERHUB_HOME", "var", "Folder of all data of the embedded default."),
        Setting("ADAPTERHUB_HOST", "127.0.0.1", "Address that web, router and engines listen on."),
        Setting("ADAPTERHUB_PORT", "8000", "Port of the web process."),
        Setting("ADAPTERHUB_ROUTER_PORT", "8080", "Port of the router."),
        Setting(
            "ADAPTERHUB_ROUTER_URL",
            "",
            "Router that the playground sends prompts to; empty = the router at this host and port.",
        ),
        Setting("ADAPTERHUB_ENGINE_PORT", "8100", "Port of the first embedded engine; replica i listens on port + i."),
        Setting("ADAPTERHUB_ENGINES", "2", "Embedded engine replicas to start."),
        Setting("ADAPTERHUB_ENGINE_DEVICE", "cpu", "Device of each engine: cpu (float32) or cuda (bfloat16)."),
        Setting("ADAPTERHUB_BASE_MODEL", "", "Folder or hub id that the embedded engines serve; empty = SmolLM2-135M."),
        Setting(
            "ADAPTERHUB_SECRET_KEY",
            "",
            "Django's secret key; empty = generated once and stored in the data folder.",
            True,
        ),
        Setting(
            "ADAPTERHUB_AUDIT_KEY", "", "Ed25519 key that signs audit checkpoints, PEM; empty = generated once.", True
        ),
        Setting("ADAPTERHUB_AUDIT_CHECKPOINT_S", "3600", "Seconds after which a chain's head is signed again."),
        Setting(
            "ADAPTERHUB_AUDIT_CHECKPOINT_EVENTS",
            "100",
            "Events after which a chain's head is signed, whatever the time.",
        ),
        Setting(
            "ADAPTERHUB_AUDIT_WITNESSES",
            "",
            "Who keeps checkpoints outside, with commas: file://, s3://, postgres://, tsa://.",
            secret=True,
        ),
        Setting(
            "ADAPTERHUB_AUDIT_TSA_CERTIFICATES",
            "",
            "File of the roots of time-stamping authorities, PEM; needed for tsa://.",
        ),
        Setting(
            "ADAPTERHUB_AUDIT_CA",
            "",
            "File of authorities, PEM, that tsa:// and the SIEM are trusted by, besides public ones.",
        ),
        Setting(
            "ADAPTERHUB_AUDIT_SIEM",
            "",
            "Where every event goes: https://, syslog+tls:// or syslog://; empty = nowhere.",
        ),
        Setting("ADAPTERHUB_AUDIT_SIEM_TOKEN", "", "Bearer token that the SIEM is sent over https.", secret=True),
        Setting("ADAPTERHUB_FORMER_KEYS", "", "Public keys, PEM, whose signatures of versions remain valid."),
        Setting("ADAPTERHUB_DEBUG", "0", "1 shows tracebacks in the browser. Never in production."),
        Setting("ADAPTERHUB_HOSTS", "localhost,127.0.0.1,[::1]", "Host names that web and router answer to."),
        Setting("ADAPTERHUB_LOG_FORMAT", "text", "text, or json: log lines as JSON objects, one a line."),
        Setting("ADAPTERHUB_HTTPS", "0", "1 = behind TLS: secure cookies, HSTS, redirect."),
        Setting(
            "ADAPTERHUB_PROXIES",
            "",
            "IP addresses or networks of proxies whose X-Forwarded-For is believed, separated by commas; empty = none.",
        ),
        Setting("ADAPTERHUB_CONNECTIONS", "4096", "Connections that web and each router keep open at once."),
        Setting(
            "ADAPTERHUB_CONNECTIONS_PER_ADDRESS",
            "512",
            "Of these, connections of one address, but those of ADAPTERHUB_PROXIES; 0 = no limit.",
        ),
        Setting("ADAPTERHUB_SESSION_IDLE_MINUTES", "60", "Minutes without a click after which a session ends."),
        Setting("ADAPTERHUB_SESSION_HOURS", "12", "Hours after a sign-in when its session ends in any case."),
        Setting("ADAPTERHUB_TORCH_THREADS", "0", "Threads of a training process or an engine; 0 = torch decides."),
        Setting("ADAPTERHUB_OIDC_ISSUER", "", "URL of the OpenID Connect provider to sign in with; empty = none."),
        Setting("ADAPTERHUB_OIDC_CLIENT_ID", "adapterhub", "Client id of this installation at the provider."),
        Setting(
            "ADAPTERHUB_OIDC_CLIENT_SECRET", "", "Client secret of this installation at the provider.", secret=True
        ),
        Setting("ADAPTERHUB_OIDC_ROLES", "", "Roles that groups grant: group=project:role, separated by commas."),
        Setting("DATABASE_URL", "", "Postgres as the application role; empty = embedded.", secret=True),
        Setting("DATABASE_OWNER_URL", "", "Postgres as the owner role, for migrations; empty = embedded.", secret=True),
        Setting(
            "DATABASE_SIGNER_URL",
            "",
            "Postgres as the signer's role; empty = embedded, or no signer beside an external Postgres.",
            secret=True,
        ),
        Setting("ADAPTERHUB_SIGNER_ROLE", "adapterhub_signer", "The signer's role, which migrations let sign."),
        Setting(
            "ADAPTERHUB_SIGNER_URL",
            "",
            "Where web asks the signer process, http://host:port or unix:///path; empty = web signs itself.",
        ),
        Setting("REDIS_URL", "", "Valkey or Redis; empty = embedded.", secret=True),
        Setting("ARTIFACT_STORE", "", "s3://bucket/prefix or a folder; empty = artifacts/ in the data folder."),
        Setting("S3_ENDPOINT_URL", "", "Endpoint of an S3-compatible store; empty = AWS."),
        Setting("S3_ADDRESSING", "", "path or virtual (the bucket in the host name); empty = path at an endpoint."),
        Setting("AWS_SHARED_CREDENTIALS_FILE", "", "The S3 keys; boto3 reads it, and AWS's other variables, itself."),
        Setting("ADAPTERHUB_LEASE_S", "60", "Seconds after which a job without a heartbeat is taken back."),
        Setting("ADAPTERHUB_HEARTBEAT_S", "10", "Seconds between two heartbeats of a running job."),
        Setting("ADAPTERHUB_JOB_ATTEMPTS", "3", "Attempts of a job before it fails as worker_lost."),
        Setting(
            "ADAPTERHUB_ALIVE_PATH",
            "",
            "File that a worker or beat touches every few seconds while it is alive, for a health check; empty = none.",
        ),
        Setting("ADAPTERHUB_CANCEL_GRACE_S", "5", "Seconds a cancelled job may take to save a checkpoint."),
        Setting(
            "ADAPTERHUB_PROJECT_RUNNING", "0", "Jobs of one project that run at once; 0 = as many as there are workers."
        ),
        Setting("ADAPTERHUB_PROJECT_QUEUED", "0", "Jobs of one project that may wait; 0 = no limit."),
        Setting(
            "ADAPTERHUB_PROJECT_CHILDREN", "2", "Exports, comparisons and checks of one project at once; 0 = no limit."
        ),
        Setting("ADAPTERHUB_CHILDREN", "4", "Exports, comparisons and checks at once on a host; 0 = no limit."),
        Setting(
            "ADAPTERHUB_PROJECT_REQUESTS_PER_S",
            "0",
            "Requests a second that a project may send, and the highest that its own limit may be; 0 = no limit.",
        ),
        Setting(
            "ADAPTERHUB_PROJECT_TOKENS_PER_MIN",
            "0",
            "Tokens a minute that a project may take, and the highest that its own limit may be; 0 = no limit.",
        ),
        Setting("ADAPTERHUB_API_REQUESTS_PER_S", "100", "REST calls a second of one token or person; 0 = no limit."),
        Setting(
            "ADAPTERHUB_STRANGER_REQUESTS_PER_S",
            "10",
            "REST calls a second without a valid token, and sign-ins, from one address; 0 = no limit.",
        ),
        Setting(
            "ADAPTERHUB_REFERENCE_MB",
            "2048",
            "MB of the largest base model for which a worker computes PEFT's numbers (in memory, float32) to compare "
            "them with an engine's after a version's first load; 0 = never.",
        ),
        Setting("ADAPTERHUB_UPLOAD_MB", "8192", "MB that one upload of a dataset or version may have."),
        Setting("ADAPTERHUB_SPOOL_MB", "16384", "MB of bodies that a web process keeps at once; half for one caller."),
        Setting(
            "ADAPTERHUB_CHECKPOINT_DAYS",
            "14",
            "Days that a failed or cancelled run keeps its checkpoints; 0 = forever.",
        ),
        Setting(
            "ADAPTERHUB_RESPONSE_DAYS",
            "400",
            "Days for which answers are kept with the version that gave them, at least 180; whole months are dropped.",
        ),
        Setting(
            "ADAPTERHUB_DATABASE_POOL",
            "0",
            "Postgres connections of a process; the web process sets 16; 0 = one per thread.",
        ),
        Setting(
            "ADAPTERHUB_STATEMENT_S",
            "0",
            "Seconds after which Postgres ends a statement; the web process sets 30; 0 = never.",
        ),
        Setting(
            "ADAPTERHUB_DOWNLOAD_STALL_S",
            "300",
            "Seconds without a byte after which a base model's download fails; twice as many below 1 KB a second.",
        ),
        Setting(
            "ADAPTERHUB_DISCOVERY_S",
            "5",
            "Seconds between two questions to DNS, or without `manage.py discover` to Kubernetes, for replicas.",
        ),
        Setting(
            "ADAPTERHUB_DNS_SERVERS",
            "",
            "DNS servers that discovery asks, address or address:port, with commas; empty = those of the system.",
        ),
        Setting(
            "ADAPTERHUB_KUBERNETES_URL",
            "https://kubernetes.default.svc",
            "The API of Kubernetes, where discovery follows EndpointSlices.",
        ),
        Setting(
            "ADAPTERHUB_KUBERNETES_ACCOUNT",
            "/var/run/secrets/kubernetes.io/serviceaccount",
            "Folder of the service account, with token and ca.crt, that may read them.",
        ),
        Setting("ADAPTERHUB_RECONCILE_S", "2", "Seconds between two checks of the replicas."),
        Setting("ADAPTERHUB_LOAD_DEADLINE_S", "900", "Seconds that a rollout waits for its candidate to be loaded."),
        Setting("ADAPTERHUB_ROLLBACK_WINDOW_S", "3600", "Seconds that a replaced version stays loaded."),
        Setting(
            "ADAPTERHUB_PRICES",
            "",
            "Prices for the cost of usage: prompt and completion for a million tokens, gpu_hour, cold_load; "
            "prompt=0.5,gpu_hour=2.",
        ),
        Setting("ADAPTERHUB_MLFLOW_URL", "", "MLflow tracking server that ended runs are mirrored to; empty = none."),
        Setting(
            "ADAPTERHUB_ENGINE_HOSTS",
            "",
            "Where replicas may be: host, host:port, .domain or network, with commas; empty = the embedded engines.",
        ),
        Setting(
            "ADAPTERHUB_ROUTER_SECRET_PATH",
            "",
            "File of the secret that engines' API keys are sealed with for the routers; empty = router-secret in the "
            "data folder, generated once.",
        ),
        Setting(
            "ADAPTERHUB_TABLE_MAX_AGE_S",
            "86400",
            "Seconds that a router serves from one routing table; after them it answers 503 stale_table.",
        ),
        Setting(
            "ADAPTERHUB_DATASET_SOURCES",
            "",
            "What datasets may be read from: s3://bucket/prefix or hf://owner, with commas; project=s3://... for one.",
        ),
        Setting(
            "ADAPTERHUB_BASE_MODEL_SOURCES",
            "",
            "Owners (`Qwen`) or repositories (`Qwen/Qwen3-8B`) of a hub whose base models may be fetched, with commas.",
        ),
        Setting("ADAPTERHUB_WEBHOOK_HOSTS", "", "Host names that webhooks may be sent to, separated by commas."),
        Setting(
            "ADAPTERHUB_JUDGE_URL", "", "OpenAI-compatible API of the rollouts' judge, https://host/v1; empty = none."
        ),
        Setting("ADAPTERHUB_JUDGE_MODEL", "", "The model that judges."),
        Setting("ADAPTERHUB_JUDGE_KEY", "", "The API key of the judge.", True),
        Setting("ADAPTERHUB_LM_EVAL_TASKS", "", "Folder of the lm-eval tasks that evaluations may name; empty = none."),
        Setting(
            "ADAPTERHUB_LM_EVAL_PYTHON",
            "",
            "Python of the environment that has lm-eval[api], on web and gpu workers; empty = the product's own.",
        ),
        Setting(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "",
            "Collector that traces go to over OTLP/HTTP; empty = none. Its SDK reads OTEL's other variables itself.",
        ),
        Setting("ADAPTERHUB_URL", "", "Read by the command `adapterhub`: address of the web process."),
        Setting("ADAPTERHUB_TOKEN", "", "Read by the command `adapterhub`: its API token.", True),
        Setting("ADAPTERHUB_PROJECT", "", "Read by the command `adapterhub`: project; empty = the token's."),
        Setting("ADAPTERHUB_CONFIG", "", "Read by the command `adapterhub`: its file; empty = in the user's folder."),
        Setting("DEMO_EXIT", "0", "1 = the demo ends when its last step is done."),
    )
}


def read(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the variable's text, or its default when it is empty or not set.

    For a secret, `NAME_FILE` may name a file with the value. Raises BadSetting if that cannot be read.
    """
    setting = TABLE[name]
    if setting.secret and (path := environ.get(f"{name}_FILE")):
        return contents(f"{name}_FILE", path)
    return environ.get(name) or setting.default


def contents(name: str, path: str) -> str:
    """Return the text, without surrounding spaces, of the file `path`.

    Raises BadSetting, with the variable `name`, if the file cannot be read.
    """
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise BadSetting(f"{name}={path!r} cannot be read ({error.strerror}): name a readable file.") from error


def integer(name: str, environ: Mapping[str, str] = os.environ, *, least: int = 0, most: int = 2**31) -> int:
    """Return the variable as a whole number in [least, most]. Raises BadSetting for any other text."""
    text = read(name, environ)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise BadSetting(f"{name}={text!r} is not a whole number from {least} to {most}: set it to one, or unset it.")
    return int(text)


def flag(name: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Return True for 1 and False for 0. Raises BadSetting for any other text."""
    return integer(name, environ, most=1) == 1


def choice(name: str, choices: tuple[str, ...], environ: Mapping[str, str] = os.environ) -> str:
    """Return the variable if it is one of `choices` or empty. Raises BadSetting for another value."""
    text = read(name, environ)
    if text and text not in choices:
        raise BadSetting(f"{name}={text!r} is not one of {', '.join(choices)}: set it to one of them, or unset it.")
    return text


def words(name: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variable's words, separated by commas. Raises BadSetting if a secret's file cannot be read."""
    return [word.strip() for word in read(name, environ).split(",") if word.strip()]


def prices(name: str, environ: Mapping[str, str] = os.environ) -> dict[str, float]:
    """Parse `prompt=0.5,gpu_hour=2` into prices by kind; empty without any.

    Raises BadSetting for an unknown kind or a price that is no number from 0 on.
    """
    priced: dict[str, float] = {}
    for entry in words(name, environ):
        kind, _, price = entry.partition("=")
        try:
            priced[kind] = float(price)
        except ValueError:
            priced[kind] = -1.0
        if kind not in PRICED or not 0 <= priced[kind] < float("inf"):
            raise BadSetting(
                f"{name}: {entry!r} is no price: write {'=..., '.join(PRICED)}=... with numbers from 0 on."
            )
    return priced


def networks(name: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variable's IP addresses and networks, separated by commas. Raises BadSetting for any other word."""
    for word in words(name, environ):
        try:
            ip_network(word)
        except ValueError as error:
            raise BadSetting(f"{name}: {word!r} is not an IP address or network: correct it, or unset it.") from error
    return words(name, environ)


def engine_hosts(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the HOST:PORT at which replicas may be; by default those of the embedded engines.

    Raises BadSetting if the port or the number of the embedded engines is invalid.
    """
    first, count = integer("ADAPTERHUB_ENGINE_PORT", environ), integer("ADAPTERHUB_ENGINES", environ)
    hosts = ("127.0.0.1", "localhost", "[::1]", read("ADAPTERHUB_HOST", environ))
    embedded = [f"{host}:{first + engine}" for engine in range(count) for host in hosts]
    return words("ADAPTERHUB_ENGINE_HOSTS", environ) or embedded


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the absolute path of the data folder."""
    return Path(read("ADAPTERHUB_HOME", environ)).resolve()


def roles(name: str, environ: Mapping[str, str] = os.environ) -> dict[str, list[tuple[str, str]]]:
    """Return `group=project:role,...` as {group: [(project, role)]}. Raises BadSetting for an entry of another form."""
    granted: dict[str, list[tuple[str, str]]] = {}
    for entry in words(name, environ):
        group, _, grant = entry.rpartition("=")
        project, _, role = grant.partition(":")
        if not (group and project and role):
            raise BadSetting(f"{name}: {entry!r} is not of the form group=project:role: correct it.")
        granted.setdefault(group, []).append((project, role))
    return granted
