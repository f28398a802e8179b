"""Django settings. Every environment variable is read through the table in `adapterhub.environment`."""

import gc
import logging
import secrets
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONE, SELF

from adapterhub import environment as env
from adapterhub.embedded import layout

# Each import and each request makes tens of thousands of objects that live on; looking through all of them for cycles
# every 700 took a fifth of the start of each process.
gc.set_threshold(50_000, 50, 100)

ROOT = Path(__file__).resolve().parent.parent
# The wheel has the templates in this package, a clone beside it.
TEMPLATE_FOLDERS = [ROOT / "adapterhub" / "templates", ROOT / "templates"]
HOME = env.home()


def kept_secret_key() -> str:
    """Return the secret key in the data folder; on the first call it is generated, readable by its owner only."""
    path = HOME / "secret-key"
    if not path.exists():
        HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(64))
    return path.read_text()


def origin(url: str) -> str:
    """Return the scheme, host and port of a URL, as `https://host:port`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


SECRET_KEY = env.read("ADAPTERHUB_SECRET_KEY") or kept_secret_key()
DEBUG = env.flag("ADAPTERHUB_DEBUG")
HTTPS = env.flag("ADAPTERHUB_HTTPS")
ALLOWED_HOSTS = env.words("ADAPTERHUB_HOSTS")
PROXIES = env.networks("ADAPTERHUB_PROXIES")

INSTALLED_APPS = [
    "adapterhub.apps.AdapterHubConfig",
    "adapterhub.accounts.apps.AccountsConfig",
    "adapterhub.audit",
    "adapterhub.jobs",
    "adapterhub.api",
    "adapterhub.webhooks",
    "registry",
    "training",
    "adapterhub.accounts.apps.HubAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "allauth",
    "csp",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "adapterhub.api.middleware.request_id",
    "adapterhub.api.middleware.span",
    "adapterhub.api.middleware.trace",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "adapterhub.accounts.sessions.end_of_sessions",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "adapterhub.api.middleware.publication",
    "adapterhub.api.pages.DomainErrorsOnPages",
]

ROOT_URLCONF = "adapterhub.urls"
ASGI_APPLICATION = "adapterhub.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [next(folder for folder in TEMPLATE_FOLDERS if folder.is_dir())],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "adapterhub.api.pages.navigation",
                "adapterhub.api.theme.theme",
            ],
        },
    }
]

# The application role may not change the schema nor rewrite history; migrations run as the owner.
DATABASES = {
    "default": dj_database_url.parse(env.read("DATABASE_URL") or layout.database_url(HOME), conn_max_age=60),
    "owner": dj_database_url.parse(env.read("DATABASE_OWNER_URL") or layout.database_owner_url(HOME)),
}
# The process that signs in people's names has a role of its own, which the application's role cannot take.
SIGNER_DATABASE_URL = env.read("DATABASE_SIGNER_URL") or (
    "" if env.read("DATABASE_URL") else layout.database_signer_url(HOME)
)
# For the command that makes what only that role may make; no server connects by it.
SIGNER_DATABASE = dj_database_url.parse(SIGNER_DATABASE_URL) if SIGNER_DATABASE_URL else None
SIGNER_URL, SIGNER_ROLE = env.read("ADAPTERHUB_SIGNER_URL"), env.read("ADAPTERHUB_SIGNER_ROLE")
# A stopped process must not hold its locks for ever: the server ends a transaction that waits for its client.
IDLE_IN_TRANSACTION_S = 120
LIMITS = {
    "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S,
    "statement_timeout": env.integer("ADAPTERHUB_STATEMENT_S", most=86_400),
}
DATABASES["default"].setdefault("OPTIONS", {}).setdefault(
    "options", " ".join(f"-c {name}={seconds}s" for name, seconds in LIMITS.items())
)
# Under ASGI every request has a thread of its own: without a pool each would leave a connection behind.
if pool := env.integer("ADAPTERHUB_DATABASE_POOL", most=1000):
    DATABASES["default"]["OPTIONS"]["pool"] = {"min_size": 1, "max_size": pool}
    DATABASES["default"]["CONN_MAX_AGE"] = 0
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
AUTHENTICATION_BACKENDS = [
    "adapterhub.accounts.authentication.PasswordBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
OIDC_ISSUER = env.read("ADAPTERHUB_OIDC_ISSUER")
OIDC_ROLES = env.roles("ADAPTERHUB_OIDC_ROLES")
SOCIALACCOUNT_ADAPTER = "adapterhub.accounts.oidc.OidcAdapter"
SOCIALACCOUNT_ONLY = True
ACCOUNT_EMAIL_VERIFICATION = "none"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = False
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "sso",
                "name": "Single sign-on",
                "client_id": env.read("ADAPTERHUB_OIDC_CLIENT_ID"),
                "secret": env.read("ADAPTERHUB_OIDC_CLIENT_SECRET"),
                "settings": {"server_url": OIDC_ISSUER},
            }
        ]
        if OIDC_ISSUER
        else [],
    }
}
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
FORMAT_MODULE_PATH = "adapterhub.formats"
USE_TZ = True

STATIC_URL = "static/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# All static files lie in packages: nothing has to be collected before a start.
WHITENOISE_USE_FINDERS = True

SESSION_IDLE_S = 60 * env.integer("ADAPTERHUB_SESSION_IDLE_MINUTES", least=1, most=525_600)
SESSION_COOKIE_AGE = 3600 * env.integer("ADAPTERHUB_SESSION_HOURS", least=1, most=8_760)
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
# No page has inline scripts or styles, so none are allowed: stricter than a nonce.
# A form may lead to the sign-in provider, also by a redirect.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF, *([origin(OIDC_ISSUER)] if OIDC_ISSUER else [])],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
    }
}
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    # Health checks come from behind the TLS proxy.
    SECURE_REDIRECT_EXEMPT = [r"^healthz$"]
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SESSION_COOKIE_NAME = "__Host-sessionid"
    CSRF_COOKIE_NAME = "__Host-csrftoken"

DATA_UPLOAD_MAX_MEMORY_SIZE = 4 * 2**20
# Also of every body until it is whole: many wait at once.
FILE_UPLOAD_MAX_MEMORY_SIZE = 256 * 2**10
UPLOAD_BYTES = env.integer("ADAPTERHUB_UPLOAD_MB", least=1) * 2**20
SPOOL_BYTES = env.integer("ADAPTERHUB_SPOOL_MB", least=1) * 2**20
FILE_UPLOAD_HANDLERS = [
    "django.core.files.uploadhandler.MemoryFileUploadHandler",
    "adapterhub.workspace.WorkFolderUploadHandler",
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "adapterhub.accounts.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PARSER_CLASSES": [
        "adapterhub.api.parsers.BoundedJSONParser",
        "rest_framework.parsers.FormParser",
        "adapterhub.api.parsers.NamedMultiPartParser",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["adapterhub.api.permissions.ScopePermission"],
    "DEFAULT_THROTTLE_CLASSES": ["adapterhub.api.throttling.CallerThrottle"],
    "DEFAULT_FILTER_BACKENDS": ["adapterhub.api.filtering.Narrowing"],
    "DEFAULT_PAGINATION_CLASS": "adapterhub.api.pagination.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "adapterhub.api.problems.problem_response",
    "PAGE_SIZE": 50,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "AdapterHub",
    "DESCRIPTION": "From dataset to audited production and back, for LoRA adapters. Lists and single things take "
    "`?fields=a,b`: only these come. A list refuses a filter that it lacks.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "adapterhub.api.openapi.schema.tell_what_all_calls_share",
    ],
    # Five resources have a `status`, each with its own values.
    "ENUM_NAME_OVERRIDES": {
        "Role": "adapterhub.accounts.models.Membership.Role",
        "ServiceRole": "adapterhub.accounts.service_accounts.ROLES",
        "JobStatus": "adapterhub.jobs.models.JobStatus",
        "BaseModelStatus": "registry.models.base_model.BaseModelStatus",
        "VersionStatus": "registry.models.adapter.VersionStatus",
        "RolloutStatus": "registry.models.rollout.RolloutStatus",
        "ApprovalStatus": "registry.models.approval.ApprovalStatus",
        "GuardrailKind": "registry.api.rollout_plan.KINDS",
    },
}

# The largest base model of which a worker computes PEFT's numbers; 0 = none.
REFERENCE_BYTES = env.integer("ADAPTERHUB_REFERENCE_MB", least=0) * 2**20

REDIS_URL = env.read("REDIS_URL") or layout.redis_url(HOME)
# redis-py writes unix://, kombu redis+socket:// for the same socket.
CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
# A broker that hangs must not hold a request or a worker for ever.
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 10, "socket_connect_timeout": 5}
CELERY_TASK_IGNORE_RESULT = True
# A wake-up that cannot be sent now is sent by the sweeper; the request must not wait for it.
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_max": 0.2}
CELERY_TASK_DEFAULT_QUEUE = "default"
# A queue for each kind of work, each with workers of its own: what waits for the world outside stalls no other kind.
QUEUES = ("control", "default", "download", "gpu")
CELERY_TASK_ROUTES = {
    "registry.tasks.reconcile": {"queue": "control"},
    "registry.tasks.discover": {"queue": "control"},
    "registry.tasks.look_at_rollouts": {"queue": "control"},
    "registry.tasks.collect_outcomes": {"queue": "control"},
    "registry.tasks.check_base_models": {"queue": "control"},
    "adapterhub.jobs.tasks.sweep": {"queue": "control"},
    "registry.tasks.check_base_model": {"queue": "download"},
    "training.tasks.fetch_dataset": {"queue": "download"},
    "training.tasks.check_dataset": {"queue": "default"},
    "training.tasks.mirror": {"queue": "default"},
    "training.tasks.check_datasets": {"queue": "default"},
    "training.tasks.*": {"queue": "gpu"},
}
# No task may hold its worker for ever. Seconds until it is interrupted; GRACE_S later its process is killed.
CONTROL_S, TASK_S, DOWNLOAD_S, JOB_S = 60, 600, 24 * 3600, 30 * 24 * 3600
GRACE_S = 30
CELERY_TASK_SOFT_TIME_LIMIT, CELERY_TASK_TIME_LIMIT = TASK_S, TASK_S + GRACE_S
CELERY_TASK_ANNOTATIONS = {
    task: {"soft_time_limit": seconds, "time_limit": seconds + GRACE_S}
    for seconds, tasks in {
        CONTROL_S: [task for task, route in CELERY_TASK_ROUTES.items() if route["queue"] == "control"],
        DOWNLOAD_S: ["registry.tasks.check_base_model", "training.tasks.fetch_dataset"],
        JOB_S: ["training.tasks.work"],
    }.items()
    for task in tasks
}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULER = "adapterhub.jobs.liveness:Scheduler"
CELERY_BEAT_SCHEDULE_FILENAME = str(HOME / "celerybeat-schedule")
CELERY_BEAT_SCHEDULE = {
    "reconcile": {
        "task": "registry.tasks.reconcile",
        "schedule": env.integer("ADAPTERHUB_RECONCILE_S", least=1),
        "options": {"expires": 10},
    },
    "discovery": {
        "task": "registry.tasks.discover",
        "schedule": env.integer("ADAPTERHUB_DISCOVERY_S", least=1),
        "options": {"expires": 10},
    },
    "sweep": {"task": "adapterhub.jobs.tasks.sweep", "schedule": 5.0, "options": {"expires": 10}},
    "check": {"task": "registry.tasks.check_versions", "schedule": 30.0, "options": {"expires": 60}},
    "bases": {"task": "registry.tasks.check_base_models", "schedule": 30.0, "options": {"expires": 60}},
    "datasets": {"task": "training.tasks.check_datasets", "schedule": 30.0, "options": {"expires": 60}},
    "seal": {"task": "adapterhub.audit.tasks.seal", "schedule": 5.0, "options": {"expires": 10}},
    "checkpoint": {"task": "adapterhub.audit.tasks.checkpoint", "schedule": 10.0, "options": {"expires": 20}},
    "follow": {"task": "adapterhub.audit.tasks.follow", "schedule": 5.0, "options": {"expires": 10}},
    **(
        {"compare": {"task": "registry.tasks.compare_served", "schedule": 30.0, "options": {"expires": 25}}}
        if REFERENCE_BYTES
        else {}
    ),
    "rollouts": {"task": "registry.tasks.look_at_rollouts", "schedule": 5.0, "options": {"expires": 10}},
    "judge": {"task": "registry.tasks.judge_samples", "schedule": 5.0, "options": {"expires": 10}},
    "webhooks": {"task": "adapterhub.webhooks.tasks.send_due", "schedule": 2.0, "options": {"expires": 10}},
    "mlflow": {"task": "training.tasks.mirror", "schedule": 30.0, "options": {"expires": 60}},
    "answers": {"task": "adapterhub.api.tasks.drop_old_answers", "schedule": timedelta(hours=1)},
    "staged": {"task": "registry.tasks.drop_staged_files", "schedule": timedelta(hours=1)},
    "responses": {"task": "registry.tasks.keep_responses", "schedule": timedelta(hours=1)},
    "outcomes": {"task": "registry.tasks.collect_outcomes", "schedule": 2.0, "options": {"expires": 10}},
}

PRICES = env.prices("ADAPTERHUB_PRICES")
MLFLOW_URL = env.read("ADAPTERHUB_MLFLOW_URL")
ENGINE_HOSTS = env.engine_hosts()
ROUTER_SECRET_FILE = Path(env.read("ADAPTERHUB_ROUTER_SECRET_PATH") or HOME / "router-secret")
WEBHOOK_HOSTS = env.words("ADAPTERHUB_WEBHOOK_HOSTS")
DATASET_SOURCES = env.words("ADAPTERHUB_DATASET_SOURCES")
BASE_MODEL_SOURCES = env.words("ADAPTERHUB_BASE_MODEL_SOURCES")
JUDGE_URL = env.read("ADAPTERHUB_JUDGE_URL")
JUDGE_MODEL = env.read("ADAPTERHUB_JUDGE_MODEL")
JUDGE_KEY = env.read("ADAPTERHUB_JUDGE_KEY")
AUDIT_KEY = env.read("ADAPTERHUB_AUDIT_KEY")
FORMER_KEYS = env.read("ADAPTERHUB_FORMER_KEYS")
AUDIT_KEY_FILE = HOME / "audit-key.pem"
AUDIT_CHECKPOINT_AGE = timedelta(seconds=env.integer("ADAPTERHUB_AUDIT_CHECKPOINT_S", least=60))
AUDIT_CHECKPOINT_EVENTS = env.integer("ADAPTERHUB_AUDIT_CHECKPOINT_EVENTS", least=1)
AUDIT_WITNESSES = env.words("ADAPTERHUB_AUDIT_WITNESSES")
AUDIT_TSA_CERTIFICATES = env.read("ADAPTERHUB_AUDIT_TSA_CERTIFICATES")
AUDIT_CA = env.read("ADAPTERHUB_AUDIT_CA")
AUDIT_SIEM = env.read("ADAPTERHUB_AUDIT_SIEM")
AUDIT_SIEM_TOKEN = env.read("ADAPTERHUB_AUDIT_SIEM_TOKEN")
ARTIFACT_STORE = env.read("ARTIFACT_STORE") or str(HOME / "artifacts")
S3_ENDPOINT_URL = env.read("S3_ENDPOINT_URL") or None
S3_ADDRESSING = env.choice("S3_ADDRESSING", ("path", "virtual"))
MODELS_DIR = HOME / "models"
WORK_DIR = HOME / "work"
INBOX_DIR = HOME / "inbox"
SERVED_DIR = HOME / "served"

DISCOVERY_S = env.integer("ADAPTERHUB_DISCOVERY_S", least=1)
DNS_SERVERS = env.words("ADAPTERHUB_DNS_SERVERS")
KUBERNETES_URL = env.read("ADAPTERHUB_KUBERNETES_URL")
KUBERNETES_ACCOUNT = env.read("ADAPTERHUB_KUBERNETES_ACCOUNT")
LEASE_S = env.integer("ADAPTERHUB_LEASE_S", least=1)
HEARTBEAT_S = env.integer("ADAPTERHUB_HEARTBEAT_S", least=1)
JOB_ATTEMPTS = env.integer("ADAPTERHUB_JOB_ATTEMPTS", least=1)
CANCEL_GRACE_S = env.integer("ADAPTERHUB_CANCEL_GRACE_S")
PROJECT_RUNNING = env.integer("ADAPTERHUB_PROJECT_RUNNING")
PROJECT_QUEUED = env.integer("ADAPTERHUB_PROJECT_QUEUED")
PROJECT_CHILDREN = env.integer("ADAPTERHUB_PROJECT_CHILDREN", most=1000)
CHILDREN = env.integer("ADAPTERHUB_CHILDREN", most=1000)
PROJECT_REQUESTS_PER_S = env.integer("ADAPTERHUB_PROJECT_REQUESTS_PER_S")
PROJECT_TOKENS_PER_MIN = env.integer("ADAPTERHUB_PROJECT_TOKENS_PER_MIN", most=2**31 - 1)
API_REQUESTS_PER_S = env.integer("ADAPTERHUB_API_REQUESTS_PER_S")
STRANGER_REQUESTS_PER_S = env.integer("ADAPTERHUB_STRANGER_REQUESTS_PER_S")
CHECKPOINTS_KEPT = timedelta(days=env.integer("ADAPTERHUB_CHECKPOINT_DAYS", most=36_500))
RESPONSE_DAYS = env.integer("ADAPTERHUB_RESPONSE_DAYS", least=180, most=36_500)
DOWNLOAD_STALL_S = env.integer("ADAPTERHUB_DOWNLOAD_STALL_S", least=1)
LOAD_DEADLINE = timedelta(seconds=env.integer("ADAPTERHUB_LOAD_DEADLINE_S", least=1))
ROLLBACK_WINDOW = timedelta(seconds=env.integer("ADAPTERHUB_ROLLBACK_WINDOW_S"))
TORCH_THREADS = env.integer("ADAPTERHUB_TORCH_THREADS", most=1024)
LOCAL_ROUTER = f"http://{env.read('ADAPTERHUB_HOST')}:{env.integer('ADAPTERHUB_ROUTER_PORT', least=1, most=65535)}"
ALIVE_FILE = env.read("ADAPTERHUB_ALIVE_PATH")
LM_EVAL_TASKS = env.read("ADAPTERHUB_LM_EVAL_TASKS")
LM_EVAL_PYTHON = env.read("ADAPTERHUB_LM_EVAL_PYTHON")
ROUTER_URL = env.read("ADAPTERHUB_ROUTER_URL") or LOCAL_ROUTER

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "adapterhub.redaction.Redacting", "format": "%(levelname)s %(name)s %(message)s"},
        "json": {"()": "adapterhub.redaction.RedactingJson"},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": env.choice("ADAPTERHUB_LOG_FORMAT", ("text", "json")),
        }
    },
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {"httpx": {"level": "WARNING"}, "celery.app.trace": {"level": "WARNING"}},
}
# Warnings of Python are lines of the same format.
logging.captureWarnings(env.read("ADAPTERHUB_LOG_FORMAT") == "json")
