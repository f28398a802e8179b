"""Signals that the registry's models send after a commit; `receivers.py` connects them to the tasks."""

from __future__ import annotations

from django.dispatch import Signal

# `version`: the key of a version whose file a child process has to check.
version_uploaded = Signal()
# `base_model`: the key of a base model whose files have to be fetched and inspected.
base_model_registered = Signal()
# The replicas of a cluster changed.
cluster_changed = Signal()
# `alias`: the key of an alias whose version, rollout share or policy changed.
routes_changed = Signal()
