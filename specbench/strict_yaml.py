"""YAML without its traps: no key twice, no aliases (a few lines of them unfold to gigabytes), no Python objects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from specbench.errors import ConfigError

LARGEST_FILE = 256 << 10  # bytes


class YamlError(ValueError):
    """Why a text is not read, and the line (from 1) where that is known. Never a value: it may be private."""

    def __init__(self, what: str, line: int | None) -> None:
        self.line = line
        super().__init__(what)


def read_yaml(text: str) -> Any:
    """The one document of a text. Raises YamlError."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        # Names of tags and handles may be the first word of a prompt; single characters are only that.
        raise YamlError(re.sub(r" '[^']{5,}'", "", error.problem or "not YAML"), line) from None
    except yaml.reader.ReaderError as error:
        raise YamlError("a control character", text[: error.position].count("\n") + 1) from None
    except RecursionError:
        raise YamlError("nested too deeply", None) from None
    except (ValueError, OverflowError):  # a number of thousands of digits, the 40th of May
        raise YamlError("a number or a date that does not exist", None) from None


def read_file(path: Path) -> dict[Any, Any]:
    """The keys and values of a configuration. Raises ConfigError."""
    try:
        if not path.is_file():
            what = "The configuration is not a file" if path.exists() else "No such configuration file"
            raise ConfigError(what, where=str(path), hint="Check the path given to --config.")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ConfigError(
                f"A configuration is no larger than {LARGEST_FILE >> 10} KiB", where=str(path), hint="Check the path."
            )
        values = read_yaml(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration: {error.strerror}", where=str(path), hint="Check its permissions."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Not UTF-8: byte {error.start}", where=str(path), hint="Save the file as UTF-8, for example with iconv."
        ) from None
    except YamlError as error:
        where, hint = (str(path), "the file") if error.line is None else (f"{path}, line {error.line}", "that line")
        raise ConfigError(f"Not readable as YAML: {error}", where=where, hint=f"Mend {hint}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("A configuration is a mapping of keys to values", where=str(path), hint="Write `key: value`.")
    return values


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            problem = "a value that begins with * must be in quotes; aliases are not read"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, str(key.value))
            if name in found:
                raise yaml.constructor.ConstructorError(None, None, "a key is there twice", key.start_mark)
            found.add(name)
        return super().construct_mapping(node, deep)
