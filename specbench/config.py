"""Every setting, once, and how a run's are read: a YAML file plus flags, checked, frozen after.

A field of RunConfig or of Policy is a setting: its name is the key of the file, of the Python interface and, with
dashes, the flag; its type is its check. To add one, add its line here. settings.py says what can be said of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from specbench.errors import ConfigError
from specbench.kinds import (
    API_KEY_ENV,
    MAX_BATCH,
    MAX_GAMMA,
    WORDS,
    Address,
    BatchSizes,
    Clients,
    Cutoff,
    Drafts,
    Gammas,
    Lengths,
    Mix,
    ModelNames,
    Name,
    PathText,
    Range,
    Rates,
    Seconds,
    TemplateKwargs,
    Text,
    Texts,
    Variable,
)
from specbench.settings import Setting, check_all, setting, settings_of
from specbench.shipped import DEFAULT_WORKLOAD
from specbench.text import shown

if TYPE_CHECKING:
    from specbench.records import Load, Sampling

# Target and draft of servers that run already, where the user does not name them.
SERVED = "served"

# The target where answers are recorded and none is to be loaded.
NO_TARGET = "none"

# Whose answers a run is about: those that the target writes, those of the workload, or those of a file.
WRITTEN, RECORDED = "written", "recorded"

Metric = Literal["decode", "e2e"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Engine = Literal["local", "llamacpp", "vllm", "sglang", "tensorrt", "lmdeploy", "openai"]

# Commands that have a flag for most settings.
RUNS = ("measure", "sweep")
MODELS = (*RUNS, "doctor", "probe")
TEXTS = (*RUNS, "doctor")
PROMPTS = (*MODELS, "workload")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asks of speculation before turning it on."""

    min_speedup: Annotated[float, Range(0, 100, above=True)] = setting(
        1.10, "Smallest speedup worth having.", "decision", (*RUNS, "brief", "plan")
    )
    metric: Annotated[Metric, WORDS] = setting(
        "decode",
        "The verdict is on decode (time per token after the first) or e2e (with the prefills).",
        "decision",
        (*RUNS, "brief"),
    )
    confidence: Annotated[float, Range(0.5, 0.9999)] = setting(
        0.95, "Of intervals and verdicts.", "decision", (*RUNS, "brief", "plan")
    )
    slower_than: Annotated[float, Range(0, 1)] = setting(
        0.95, "Below this speedup a prompt counts as slower.", "decision"
    )
    max_slower_share: Annotated[float, Range(0, 1)] = setting(
        0.25, "Largest share of prompts that may be slower.", "decision"
    )
    mix: Mix = setting(
        None,
        "Share of requests by category in your traffic: code=0.6,chat=0.4.",
        "decision",
        (*RUNS, "brief"),
        unset="the prompts",
    )
    by_length: Lengths = setting(
        (),
        "Verdicts by prompt length in tokens: 1k,4k,16k, or quantiles (thirds).",
        "decision",
        (*RUNS, "brief"),
        metavar="TOKENS",
        measured=False,
    )
    price_per_hour: Annotated[float, Range(0, 1e9, above=True)] | None = setting(
        None, "Of the machine, in any currency: adds the price of tokens.", "decision", (*RUNS, "brief")
    )
    max_added_gb: Annotated[float, Range(0, 1e6)] | None = setting(
        None, "Memory (10^9 bytes) that weights and cache of the draft may take.", "decision", (*RUNS, "brief")
    )


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run, fully stated."""

    target: Text = setting("demo:target", "Model id or directory.", "models", MODELS)
    draft: Drafts = setting(
        ("demo:draft",),
        "A model, ngram:n=3, skip:layers=8 or cross:MODEL; repeatable.",
        "models",
        MODELS,
        metavar="SPEC",
    )
    dtype: Annotated[DType, WORDS] = setting(
        "auto",
        "auto (the weights' own, float32 on a CPU slow in it), float32, bfloat16 or float16.",
        "models",
        MODELS,
    )
    device: Annotated[Device, WORDS] = setting("auto", "auto, cpu, cuda or mps.", "models", MODELS)
    threads: Annotated[int, Range(1, 4096)] | None = setting(
        None, "CPU threads.", "models", MODELS, unset="the free cores less one"
    )
    trust_remote_code: Texts = setting(
        (), "Model whose own code may run; repeatable.", "models", (*MODELS, "check"), metavar="MODEL", measured=False
    )

    tokenizer: Text | None = setting(
        None,
        "Whose tokenizer reads recorded answers where the target is none.",
        "models",
        RUNS,
        unset="the target's",
        metavar="MODEL",
    )
    workload: Text = setting(
        DEFAULT_WORKLOAD, "Prompt file (JSONL, JSON, CSV, Parquet, Arrow, text), or hub:ID.", "prompts", MODELS
    )
    answers: Text = setting(
        WRITTEN,
        "recorded: those in the workload, for acceptance alone; or a file of them, by id.",
        "prompts",
        RUNS,
        metavar="recorded",
    )
    verify_answers: Annotated[int, Range(0, 100_000)] = setting(
        0, "Hold N recorded answers against the target.", "prompts", RUNS, metavar="N"
    )
    limit: Annotated[int, Range(1, 10_000_000)] | None = setting(
        None,
        "Use at most N prompts, spread over the categories.",
        "prompts",
        (*MODELS, "check"),
        shipped=16,
        unset="all",
        metavar="N",
    )
    column: Text | None = setting(
        None, "Column that holds the prompt.", "prompts", PROMPTS, unset="that of a known shape"
    )
    category_column: Text | None = setting(
        None, "Column that holds the category.", "prompts", PROMPTS, unset="category or task"
    )
    system_prompt: Text | None = setting(
        None, "Put before prompts that have none.", "prompts", (*TEXTS, "check"), private=True
    )
    chat_template_kwargs: TemplateKwargs = setting(
        None,
        "For the chat template: '{\"enable_thinking\": false}'; a row's own go first.",
        "prompts",
        TEXTS,
        metavar="JSON",
    )

    max_new_tokens: Annotated[int, Range(2, 1_000_000)] = setting(
        64, "Tokens to generate at most.", "generation", (*TEXTS, "probe"), also=("max_tokens",), shipped=48
    )
    temperature: Annotated[float, Range(0, 100)] = setting(0.0, "0 is greedy.", "generation", TEXTS)
    top_p: Annotated[float, Range(0, 1, above=True)] = setting(1.0, "1 is off.", "generation", TEXTS)
    top_k: Annotated[int, Range(0, 10_000_000)] = setting(0, "0 is off.", "generation", TEXTS)
    min_p: Annotated[float, Range(0, 1)] = setting(0.0, "0 is off.", "generation", TEXTS)
    repetition_penalty: Annotated[float, Range(0, 10, above=True)] = setting(
        1.0,
        "On tokens of prompt and output, also at temperature 0; 1 is off.",
        "generation",
        TEXTS,
        also=("repeat_penalty",),
    )
    seed: Annotated[int, Range(0, 2**31 - 1)] = setting(
        0, "Draws samples, orders trials, selects prompts.", "generation", RUNS
    )
    batch_size: Annotated[int, Range(1, MAX_BATCH)] = setting(
        1, "Sequences at a time, in every arm; above 1 a batch is one trial.", "generation", RUNS
    )

    gamma: Gammas = setting(
        (1, 2, 4),
        "Draft lengths: 1..8, 1..8..2 or 1,2,4; for measure just one.",
        "drafts",
        (*RUNS, "probe", "plan", "replay", "check"),
        also=("num_speculative_tokens",),
    )
    measure_gamma: Annotated[int, Range(1, MAX_GAMMA)] = setting(
        1, "The one draft length of measure, where no flag names another.", "drafts"
    )
    cutoff: Cutoff = setting(
        0.0, "Drafts stop below this confidence; 0 is off.", "drafts", (*RUNS, "replay"), also=("p_min",)
    )
    all_gammas: bool = setting(False, "Every gamma on every prompt, also those ruled out on the way.", "drafts", RUNS)
    repeats: Annotated[int, Range(1, 1000)] = setting(
        1, "Measure every prompt in every arm N times.", "drafts", (*RUNS, "plan"), metavar="N"
    )
    time_budget_s: Seconds | None = setting(
        None,
        "Stop at a sure verdict or after: 10m, 1h30m.",
        "drafts",
        RUNS,
        also=("time_budget",),
        unset="all prompts are measured",
        metavar="TIME",
        measured=False,
    )
    max_other_cores: Annotated[float, Range(0, 4096, above=True)] = setting(
        0.5, "Repeat a trial when other processes kept more cores busy.", "drafts"
    )
    slice_tokens: Annotated[int, Range(0, 1_000_000)] = setting(
        4, "Arms take turns within a prompt, every so many tokens; 0: whole trials. In process.", "drafts", RUNS
    )
    probe_batch_sizes: BatchSizes = setting(
        (1, 2, 4, 8),
        "Batch sizes at which the models are timed alone: 1,2,4,8; 1 is always in.",
        "drafts",
        (*RUNS, "probe"),
        measured=False,
    )

    engine: Annotated[Engine, WORDS] = setting(
        "local", "local, or a server: llamacpp, vllm, sglang, tensorrt, lmdeploy, openai.", "server", (*RUNS, "probe")
    )
    launch: PathText | None = setting(
        None, "YAML file that says how to start the server.", "server", (*RUNS, "probe"), unset="the engine's own"
    )
    server: Address | None = setting(None, "Address of a running server, the target alone.", "server", RUNS)
    spec_server: Address | None = setting(None, "Address of a running server that speculates.", "server", RUNS)
    draft_server: Address | None = setting(
        None, "Address of a running server of the draft alone, for --replay-only and recorded answers.", "server", RUNS
    )
    served_model_name: ModelNames | None = setting(
        None, "What the server calls the model, where it lists several; NAME,NAME for two.", "server", RUNS
    )
    concurrency: Clients = setting((1,), "Clients at once: 1,2,4,8; verdict on the first.", "server", (*RUNS, "probe"))
    rate: Rates = setting((), "Also requests per second at random: 0.5,1,2.", "server", RUNS)
    sessions: bool = setting(
        False,
        "Ask conversations turn by turn, with the server's prefix cache on.",
        "server",
        RUNS,
    )
    request_timeout_s: Annotated[float, Range(0, 1e6, above=True)] = setting(
        300.0, "A longer request is given up.", "server", RUNS
    )
    api_key_env: Variable = setting(
        API_KEY_ENV,
        "Environment variable with the server's key, which is never stored.",
        "server",
        RUNS,
        measured=False,
    )

    policy: Policy = field(default_factory=Policy)

    ray: Text | None = setting(
        None,
        "Score recorded answers by workers of Ray: local, or a cluster's address.",
        "prompts",
        RUNS,
        metavar="local|ADDRESS",
        measured=False,
    )

    out: PathText = setting(
        "reports", "Where run folders go: OUT/<utc>-<name>/.", "output", (*RUNS, "probe"), measured=False
    )
    name: Name | None = setting(
        None, "Part of the run folder's name.", "output", (*RUNS, "probe"), unset="the command's name", measured=False
    )
    keep_text: bool = setting(False, "Store prompt and output texts in the run folder.", "output", RUNS, measured=False)

    @property
    def sampling(self) -> Sampling:
        from specbench.records import Sampling

        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)

    @property
    def recorded(self) -> bool:
        return self.answers != WRITTEN

    @property
    def served(self) -> bool:
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
        from specbench.records import Load

        return (*(Load(count) for count in self.concurrency), *(Load(1, rate) for rate in self.rate))

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """The part that decides what trials measure: two runs that differ here may not share a folder."""
        return {
            key: value
            for key, value in self.as_dict().items()
            if key in RUN_SETTINGS and RUN_SETTINGS[key].declared.measured
        }

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


RUN_SETTINGS: Mapping[str, Setting] = settings_of(RunConfig)
POLICY_SETTINGS: Mapping[str, Setting] = settings_of(Policy)
SETTINGS: Mapping[str, Setting] = {**RUN_SETTINGS, **POLICY_SETTINGS}


def load_config(path: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """Read the YAML file (None: the built-in defaults), lay the flags that are not None over it, check everything.

    Raises ConfigError naming the key, the value and the hint.
    """
    values = {}
    if path is not None:
        from specbench.strict_yaml import read_file

        values = read_file(path)
    where = str(path) if path is not None else "defaults"
    given = check_all({k: v for k, v in flags.items() if v is not None}, SETTINGS, "flags")
    policy_values = values.pop("policy", None)
    if policy_values is None:
        policy_values = {}
    if not isinstance(policy_values, dict):
        raise ConfigError("`policy` must be a mapping of keys to values", where=where, hint="Indent its keys below it.")
    policy = check_all(policy_values, POLICY_SETTINGS, f"{where}, policy")
    run = check_all(values, RUN_SETTINGS, where)
    for key, value in given.items():
        (policy if key in POLICY_SETTINGS else run)[key] = value
    config = RunConfig(**run, policy=Policy(**policy))
    if len(set(config.draft)) != len(config.draft):
        raise ConfigError("The same draft is named twice", where=where, hint="Name each draft once.")
    _one_engine(config, where)
    return config


def _one_engine(config: RunConfig, where: str) -> None:
    """Refuse settings that contradict each other about where the target runs."""
    if config.server is not None and config.launch is not None:
        raise ConfigError("Both a running server and a launch file are named", where=where, hint="Leave one out.")
    if config.spec_server is not None and config.server is None:
        raise ConfigError(
            "A server that speculates needs one that does not beside it", where="--spec-server", hint="Add --server."
        )
    if config.draft_server is not None and config.server is None and not config.recorded:
        raise ConfigError(
            "A server of the draft needs one of the target beside it", where="--draft-server", hint="Add --server."
        )
    asked = config.served or config.draft_server is not None
    if not asked and config.served_model_name is not None:
        raise ConfigError("Only a server has names", where="--served-model-name", hint="Name a --server or --engine.")
    if not asked and (config.concurrency != (1,) or config.rate):
        raise ConfigError(
            "Only a server takes several requests at once",
            where="--concurrency" if config.concurrency != (1,) else "--rate",
            hint="Name an --engine, or use --batch-size.",
        )
    if config.served and config.batch_size > 1:
        raise ConfigError("A server makes its own batches", where="--batch-size", hint="Use --concurrency.")
    urls = {"--server": config.server, "--spec-server": config.spec_server, "--draft-server": config.draft_server}
    for flag, url in urls.items():
        if url is not None:
            _check_url(flag, url)


def _check_url(flag: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # half an IPv6 address, a port that is no number, a name with an empty part
        usable = False
    if not usable:
        # What stands before an @ may be a password.
        name = "This" if "@" in url else shown(url)
        raise ConfigError(f"{name} is no http or https address", where=flag, hint="Write http://host:port.")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "An address may hold no key or password: it is stored with the run",
            where=flag,
            hint="Put the key in the environment variable that --api-key-env names.",
        )


def override_policy(stored: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A stored run's policy with the flags that are not None over it. Raises ConfigError for a bad value."""
    given = {key: value for key, value in flags.items() if value is not None}
    return {**stored, **check_all(given, POLICY_SETTINGS, "flags")}
