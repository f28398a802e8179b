"""Signals of the registry's models: what was committed. `receivers.py` wakes the tasks; nothing here knows of them."""

from __future__ import annotations

from django.dispatch import Signal

# `version`: the key of a version whose file a child process has to check.
version_uploaded = Signal()
# `base_model`: the key of a base model whose files have to be fetched and inspected.
base_model_registered = Signal()
# A cluster has other replicas.
cluster_changed = Signal()
# `alias`: the key of an alias that serves something else, or in other shares.
routes_changed = Signal()
