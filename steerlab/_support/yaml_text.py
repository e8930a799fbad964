"""YAML as users mean it, of study files and data."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Yaml(yaml.SafeLoader):
    """YAML as users mean it: 0:1:0.5 is no number of base 60, and yes, dates and 007 are texts."""


_Yaml.yaml_implicit_resolvers = {}
for _kind, _form, _first in (
    ("merge", r"<<", "<"), ("bool", r"true|false|True|False", "tfTF"), ("null", r"~|null|", ["~", "n", ""]),
    ("int", r"[-+]?(?:0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):  # fmt: skip
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), list(_first))


def load_yaml(text: str) -> Any:
    """What a text in YAML says.

    Example:
        >>> load_yaml("alphas: 0:1:0.5"), load_yaml("[yes, 12, 0.5, true]")
        ({'alphas': '0:1:0.5'}, ['yes', 12, 0.5, True])
    """
    return yaml.load(text, Loader=_Yaml)
