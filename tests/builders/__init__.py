"""Builders that tests share: plain functions and classes. Fixtures stand in `conftest.py` files and in `cast.py`."""

from tests.builders.adapters import CONFIG, LAYERS, SHAPES, module_name, write_adapter
from tests.builders.people import member
from tests.builders.rows import rows, write_jsonl

__all__ = ["CONFIG", "LAYERS", "SHAPES", "member", "module_name", "rows", "write_adapter", "write_jsonl"]
