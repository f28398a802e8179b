"""The web process: UI, REST and admin."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adapterhub.settings")
os.environ.setdefault("ADAPTERHUB_DATABASE_POOL", "16")
# Nobody waits longer for a page, and one slow question must not hold a connection of the pool.
os.environ.setdefault("ADAPTERHUB_STATEMENT_S", "30")

application = get_asgi_application()
