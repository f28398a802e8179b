"""Loader of YAML files that people write: plain words are read as by YAML 1.2, and no key may occur twice. Pure."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml


class WrittenInt(int):
    """A whole number; str() gives the text that stands in the file, for fields that hold texts."""

    text = ""

    def __str__(self) -> str:
        return self.text


class WrittenFloat(float):
    """A number; str() gives the text that stands in the file, for fields that hold texts."""

    text = ""

    def __str__(self) -> str:
        return self.text


class Loader(yaml.SafeLoader):
    """A YAML loader that takes plain words as YAML 1.2 does, and refuses a key which a mapping has twice.

    YAML 1.1, which PyYAML reads, takes 5e-4 for a text, 010 for 8, 1:30 for 90 and `no` for false; of a repeated key it
    keeps the last.
    """

    # What PyYAML's stubs call an attribute of an instance is the class' own.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError with the line of a repeated key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError("in a mapping", node.start_mark, problem, key.start_mark)
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def construct_int(loader: Loader, node: yaml.ScalarNode) -> WrittenInt:
    """Return the whole number of a scalar, with its text."""
    number = WrittenInt(node.value)
    number.text = node.value
    return number


def construct_float(loader: Loader, node: yaml.ScalarNode) -> WrittenFloat:
    """Return the number of a scalar, with its text; `.inf` and `.nan` are accepted as YAML writes them."""
    number = WrittenFloat(re.sub(r"\.(?=inf|nan)", "", node.value, flags=re.IGNORECASE))
    number.text = node.value
    return number


# Kind -> (which plain words are of it, the characters that these begin with; "" for the empty word).
SCALARS: dict[str, tuple[str, list[str]]] = {
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "merge": (r"<<", ["<"]),
}
for kind, (pattern, firsts) in SCALARS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), firsts)
Loader.add_constructor("tag:yaml.org,2002:int", construct_int)
Loader.add_constructor("tag:yaml.org,2002:float", construct_float)


def loaded(text: str) -> Any:
    """Parse the YAML text and return its content. Raises yaml.YAMLError with the line of the fault.

    Numbers are WrittenInt and WrittenFloat, which remember how they were written.
    """
    # The loader is a SafeLoader: it builds no objects.
    return yaml.load(text, Loader)  # noqa: S506  # nosec B506
