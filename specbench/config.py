"""What to run: a YAML file plus flags, checked once, frozen after.

Every key of the file is a field of RunConfig (or of its `policy`), by the same name; an unknown key is an error
with a suggestion. Values are checked here, by the rules of checks/keys.py, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from specbench.checks import POLICY_CHECKS, RUN_CHECKS
from specbench.checks.keys import API_KEY_ENV, shown
from specbench.errors import ConfigError
from specbench.records import Load, Policy, Sampling
from specbench.shipped import DEFAULT_WORKLOAD

LARGEST_FILE = 256 << 10  # bytes

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,39}")

# Target and draft of servers that run already, where the user does not name them.
SERVED = "served"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run, fully stated. configs/default.yaml says what each key means."""

    target: str = "demo:target"
    draft: tuple[str, ...] = ("demo:draft",)
    workload: str = DEFAULT_WORKLOAD
    column: str | None = None
    category_column: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    limit: int | None = None
    gamma: tuple[int, ...] = (1, 2, 4)
    measure_gamma: int = 1
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    dtype: str = "bfloat16"
    device: str = "auto"
    threads: int | None = None
    cutoff: float = 0.0
    batch_size: int = 1
    probe_batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    engine: str = "local"
    launch: str | None = None
    server: str | None = None
    spec_server: str | None = None
    draft_server: str | None = None
    served_model_name: str | None = None
    concurrency: tuple[int, ...] = (1,)
    rate: tuple[float, ...] = ()
    request_timeout_s: float = 300.0
    api_key_env: str = API_KEY_ENV
    repeats: int = 1
    all_gammas: bool = False
    max_other_cores: float = 0.5
    out: str = "reports"
    name: str | None = None
    keep_text: bool = False
    trust_remote_code: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)

    @property
    def served(self) -> bool:
        """Whether the target runs on a server, not in this process."""
        return self.engine != "local" or self.launch is not None or self.server is not None

    @property
    def served_names(self) -> tuple[str | None, str | None]:
        """The names under which the server of the target alone, and the other one, know their models; None where the
        user names none."""
        first, _, second = (self.served_model_name or "").partition(",")
        return first or None, second or None

    @property
    def loads(self) -> tuple[Load, ...]:
        """Every load at which a server is measured; the first is what the verdict is about."""
        return (*(Load(count) for count in self.concurrency), *(Load(1, rate) for rate in self.rate))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored in run.json."""
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The part that decides what trials measure: two runs that differ here may not share a folder."""
        cosmetic = {"out", "name", "policy", "keep_text", "trust_remote_code", "probe_batch_sizes", "api_key_env"}
        return {key: value for key, value in self.as_dict().items() if key not in cosmetic}

    def fingerprint(self) -> str:
        """sha256 of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def load_config(path: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Read the YAML file (None: the built-in defaults), lay the flags that are not None over it, check everything.

    Raises ConfigError naming the key, the value and the cure.
    """
    values = _read_yaml(path) if path is not None else {}
    where = str(path) if path is not None else "defaults"
    given = _check({k: v for k, v in flags.items() if v is not None}, RUN_CHECKS | POLICY_CHECKS, "flags")
    policy_values = values.pop("policy", None)
    if policy_values is None:
        policy_values = {}
    if not isinstance(policy_values, dict):
        raise ConfigError("`policy` must be a mapping of keys to values", where=where, cure="Indent its keys below it.")
    policy = _check(policy_values, POLICY_CHECKS, f"{where}, policy")
    run = _check(values, RUN_CHECKS, where)
    for key, value in given.items():
        (policy if key in POLICY_CHECKS else run)[key] = value
    config = RunConfig(**run, policy=Policy(**policy))
    if len(set(config.draft)) != len(config.draft):
        raise ConfigError("The same draft is named twice", where=where, cure="Name each draft once.")
    _one_engine(config, where)
    return config


def _one_engine(config: RunConfig, where: str) -> None:
    """Refuse settings that contradict each other about where the target runs."""
    if config.server is not None and config.launch is not None:
        raise ConfigError("Both a running server and a launch file are named", where=where, cure="Leave one out.")
    if config.spec_server is not None and config.server is None:
        raise ConfigError(
            "A server that speculates needs one that does not beside it", where="--spec-server", cure="Add --server."
        )
    if config.draft_server is not None and config.server is None:
        raise ConfigError(
            "A server of the draft needs one of the target beside it", where="--draft-server", cure="Add --server."
        )
    if not config.served and config.served_model_name is not None:
        raise ConfigError("Only a server has names", where="--served-model-name", cure="Name a --server or --engine.")
    if not config.served and (config.concurrency != (1,) or config.rate):
        raise ConfigError(
            "Only a server takes several requests at once",
            where="--concurrency" if config.concurrency != (1,) else "--rate",
            cure="Name an --engine, or use --batch-size.",
        )
    if config.served and config.batch_size > 1:
        raise ConfigError("A server makes its own batches", where="--batch-size", cure="Use --concurrency.")
    urls = {"--server": config.server, "--spec-server": config.spec_server, "--draft-server": config.draft_server}
    for flag, url in urls.items():
        if url is not None:
            _check_url(flag, url)


def _check_url(flag: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, a port that is no number
        usable = False
    if not usable:
        # What stands before an @ may be a password.
        name = "This" if "@" in url else shown(url)
        raise ConfigError(f"{name} is no http or https address", where=flag, cure="Write http://host:port.")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "An address may hold no key or password: it is stored with the run",
            where=flag,
            cure="Put the key in the environment variable that --api-key-env names.",
        )


def override_policy(stored: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A stored run's policy with the flags that are not None over it. Raises ConfigError for a bad value."""
    given = {key: value for key, value in flags.items() if value is not None}
    return {**stored, **_check(given, POLICY_CHECKS, "flags")}


def _read_yaml(path: Path) -> dict[str, Any]:
    from specbench.checks.strict_yaml import YamlError, read_yaml

    if not path.is_file():
        what = "The configuration is not a file" if path.exists() else "No such configuration file"
        raise ConfigError(what, where=str(path), cure="Check the path given to --config.")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise ConfigError(
                f"A configuration is no larger than {LARGEST_FILE >> 10} KiB", where=str(path), cure="Check the path."
            )
        values = read_yaml(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the configuration: {error.strerror}", where=str(path), cure="Check its permissions."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Not UTF-8: byte {error.start}", where=str(path), cure="Save the file as UTF-8, for example with iconv."
        ) from None
    except YamlError as error:
        where, cure = (str(path), "the file") if error.line is None else (f"{path}, line {error.line}", "that line")
        raise ConfigError(f"Not readable as YAML: {error}", where=where, cure=f"Mend {cure}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("A configuration is a mapping of keys to values", where=str(path), cure="Write `key: value`.")
    return values


def _check(values: Mapping[Any, Any], checks: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in values.items():
        if key not in checks:
            # Anything but a plain name may be a line of a prompt whose indentation went wrong.
            plain = isinstance(key, str) and _PLAIN_NAME.fullmatch(key) is not None
            near = difflib.get_close_matches(key, checks, n=1) if plain else []
            cure = f"Did you mean `{near[0]}`?" if near else f"Known keys: {', '.join(checks)}."
            what = f"Unknown key `{key}`" if plain else "A key that is no plain word"
            raise ConfigError(what, where=where, cure=cure)
        try:
            checked[key] = checks[key](value)
        except ValueError as error:
            raise ConfigError(f"`{key}`: {error}", where=where) from None
    return checked
