"""configs/default.yaml, from the declarations of the settings."""

from __future__ import annotations

from typing import Any

from specbench.config import POLICY_SETTINGS, RUN_SETTINGS
from specbench.settings import GROUPS, Setting

_HEAD = """\
# What `specbench measure`, `sweep` and `brief` do when nothing else is said. Written by `make docs`.
# Copy this file, change it, and pass it with --config. Flags override it; an unknown key is an error.
"""

_TITLES = {
    "models": "models: a Hugging Face id, a local directory, or demo:target / demo:draft (the embedded pair)",
    "drafts": "what is compared",
    "server": "on a server instead of in this process",
    "decision": "the decision",
    "output": "where it goes",
}

_COMMENT_AT = 32


def text() -> str:
    """The file. The policy is a mapping below the decision."""
    parts = [_HEAD]
    for group in GROUPS:
        lines = [f"# --- {_TITLES.get(group, group)}"]
        lines += [_line(each, "") for each in RUN_SETTINGS.values() if each.declared.group == group]
        policy = [_line(each, "  ") for each in POLICY_SETTINGS.values() if each.declared.group == group]
        parts.append("\n".join([*lines, *(["policy:"] if policy else []), *policy]) + "\n")
    return "\n".join(parts)


def written(value: Any) -> str:
    """A value as the file has it: names in a list, numbers of a list as on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, tuple):
        return str(value)
    if all(isinstance(each, str) for each in value) and value:
        return f"[{', '.join(value)}]"
    return ",".join(map(str, value))


def meaning(setting: Setting) -> str:
    """Its help, and what null stands for."""
    said = setting.declared.help.removesuffix(".")
    nothing = setting.declared.unset
    return f"{said}; null: {nothing}" if setting.default is None and nothing is not None else said


def value_of(setting: Setting) -> str:
    """Its value in the file."""
    if setting.shipped == ():
        return "[]" if setting.repeated else "null"
    return written(setting.shipped)


def _line(setting: Setting, indent: str) -> str:
    key = f"{indent}{setting.key}: {value_of(setting)}"
    return f"{key.ljust(_COMMENT_AT - 1)} # {meaning(setting)}"
