"""The ASGI application of the web process, which serves UI, REST API and admin."""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adapterhub.settings")
os.environ.setdefault("ADAPTERHUB_DATABASE_POOL", "16")
# Nobody waits longer for a page, and a slow query must not hold a connection of the pool.
os.environ.setdefault("ADAPTERHUB_STATEMENT_S", "30")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402 - they are ready now
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware  # noqa: E402 - with the other imports

from adapterhub import tracing  # noqa: E402 - with the settings
from adapterhub.http.asgi_handler import OneThread  # noqa: E402 - it reads the settings
from adapterhub.workspace import sweep_work_folder  # noqa: E402 - with the settings

tracing.start("web")
sweep_work_folder()
# uvicorn itself is started with --no-proxy-headers: it would believe whatever comes from this machine.
# uvicorn and Django describe the same protocol by other types.
handler: Any = OneThread()
application = ProxyHeadersMiddleware(handler, trusted_hosts=settings.PROXIES)
