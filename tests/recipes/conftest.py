"""PEFT with bitsandbytes: a recipe that a test runs in this process would else leave it out for all later ones."""

from __future__ import annotations

from importlib import import_module

import_module("peft")
