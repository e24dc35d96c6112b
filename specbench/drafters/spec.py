"""What `--draft` says: who proposes tokens, and how.

org/model, path/to/model        a smaller model with the target's vocabulary, or a draft head: its config says which
skip:layers=8, skip:auto        the target's own first layers, its norm and its head
cross:org/model                 a model with another tokenizer, through text
ngram:n=3,min=1,max=8           look-up of the last n tokens in the text so far
suffix, suffix:corpus=FILE      look-up of the longest suffix there, or in answers of earlier as well
ngram:n=3+org/model             look-up, and where it finds nothing the model
ngram-map-k:n=3                 look-up as one engine does it: ngram-simple, -map-k, -map-k4v, -mod, -cache of llama.cpp
mtp                             the target's own multi-token-prediction layers
..,cutoff=0.3                   stop before a token of which the draft is less sure than this
..,sample=greedy                draft the likeliest token at any temperature, as most engines do
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from specbench.errors import ConfigError
from specbench.records import Sampling
from specbench.text import did_you_mean

Kind = Literal["model", "skip", "cross", "mtp", "suffix"]

# Look-ups that only a server does, as llama.cpp calls them.
LOOK_UPS = ("simple", "map-k", "map-k4v", "mod", "cache")


@dataclass(frozen=True, slots=True)
class NgramSpec:
    """`ngram:n=3,min=1,max=8`: match the last `n` tokens, else fewer, down to `shortest`; propose at most `longest`
    (None: as gamma allows). `way` is one of LOOK_UPS, None for the look-up that we do ourselves. `stated`: the shortest
    match is written, and not left to whoever looks up."""

    n: int = 3
    shortest: int = 1
    longest: int | None = None
    way: str | None = None
    stated: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class SuffixSpec:
    """`suffix:corpus=FILE`: `corpus` is a file of earlier answers, None for the text so far alone."""

    corpus: str | None = None


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """One `--draft`, taken apart. `kind` is what drafts, after a look-up where there is one; None where only `ngram`
    does, and "suffix" where only `suffix` does. `model` is the id or path of a model; `layers` those of a skip draft,
    None for `auto`. A `greedy` draft takes its likeliest token whatever the temperature, and counts as one-hot."""

    text: str
    kind: Kind | None = None
    model: str | None = None
    layers: int | None = None
    ngram: NgramSpec | None = None
    cutoff: float = 0.0
    greedy: bool = False
    suffix: SuffixSpec | None = None

    @property
    def look_up(self) -> bool:
        return self.ngram is not None or self.suffix is not None

    @property
    def alone(self) -> bool:
        """Whether nothing but a look-up drafts."""
        return self.kind in (None, "suffix")

    @property
    def reads_all(self) -> bool:
        """Whether its context bounds the texts: a cross draft reads the end of longer ones."""
        return self.kind != "cross"

    def sampling(self, sampling: Sampling) -> Sampling:
        """How it drafts where texts are sampled so."""
        return replace(sampling, temperature=0.0) if self.greedy else sampling

    @property
    def reader(self) -> str:
        """The model behind it, whatever cut-off or look-up goes with it: what is timed alone under this name."""
        if self.kind == "skip":
            return f"skip:layers={self.layers}" if self.layers is not None else "skip:auto"
        if self.kind == "mtp":
            return "mtp"
        return f"cross:{self.model}" if self.kind == "cross" else self.model or self.text


def parse_draft(text: str) -> DraftSpec:
    """Raises ConfigError with what is wrong and how to write it."""
    if not re.match(r"(suffix|ngram(-[a-z0-9-]+)?)([:+]|$)", text):
        return _single(text, text)
    head, plus, rest = text.partition("+")
    ngram = _ngram(head, text) if head.startswith("ngram") else None
    suffix = _suffix(head, text) if ngram is None else None
    if not plus:
        return DraftSpec(text, "suffix" if ngram is None else None, ngram=ngram, suffix=suffix)
    second = _single(rest, text)
    if second.kind == "cross":
        raise ConfigError("A look-up goes before a draft of the target's tokens", where=text, hint="Drop cross:.")
    return replace(second, text=text, ngram=ngram, suffix=suffix)


def require_in_process(spec: DraftSpec) -> None:
    """Raises ConfigError for a draft that only a server drives."""
    if spec.ngram is not None and spec.ngram.way is not None:
        raise ConfigError(
            "Only a server drafts like this",
            where=spec.text,
            hint="Use specbench sweep --engine with one that does, or a head, a draft model or ngram:n=3.",
        )


def reader_of(text: str, layers: int | None) -> str:
    """`DraftSpec.reader` of a draft as a run has it; `layers` are those that `skip:auto` chose."""
    spec = parse_draft(text)
    return spec.reader if layers is None else replace(spec, layers=layers).reader


def with_cutoff(text: str, cutoff: float) -> str:
    """The `--draft` with a cut-off, where it drafts with confidence and has none of its own."""
    spec = parse_draft(text)
    if not cutoff or spec.cutoff or spec.kind not in ("model", "skip", "mtp"):
        return text
    return f"{text},cutoff={Decimal(str(cutoff)):f}"  # never 1e-05


def _single(text: str, whole: str) -> DraftSpec:
    text, cutoff, greedy = _options(text, whole)
    if text == "mtp":
        return DraftSpec(whole, "mtp", cutoff=cutoff, greedy=greedy)
    kind, colon, rest = text.partition(":")
    if kind == "skip" and colon:
        if rest == "auto":
            return DraftSpec(whole, "skip", cutoff=cutoff, greedy=greedy)
        number = rest.removeprefix("layers=")
        if number == rest or not re.fullmatch("[0-9]{1,6}", number) or int(number) < 1:
            raise ConfigError(
                f"{rest!r} is no option of a skip draft", where=whole, hint="Write skip:layers=8 or skip:auto."
            )
        return DraftSpec(whole, "skip", layers=int(number), cutoff=cutoff, greedy=greedy)
    if kind == "cross" and colon:
        if cutoff:
            raise ConfigError("A cross draft has no cut-off", where=whole, hint="Leave cutoff out.")
        return DraftSpec(whole, "cross", model=_named(rest, whole))
    return DraftSpec(whole, "model", model=_named(text, whole), cutoff=cutoff, greedy=greedy)


def _named(model: str, whole: str) -> str:
    if not model.strip():
        raise ConfigError("No model is named", where=whole, hint="Write the model's id or path.")
    return model


def _options(text: str, whole: str) -> tuple[str, float, bool]:
    """What is left without its options, in whatever order, the cut-off, and whether it drafts greedily."""
    head, found, value = text.rpartition(",sample=")
    if not found or "/" in value:
        return *_cutoff(text, whole), False
    way, comma, rest = value.partition(",")
    if _given(",sample=", head):
        raise ConfigError("sample is given twice", where=whole, hint="Write it once.")
    if way != "greedy":
        raise ConfigError(f"{way!r} is no way to draft", where=whole, hint="Write sample=greedy, or leave it out.")
    return *_cutoff(head + comma + rest, whole), True


def _cutoff(text: str, whole: str) -> tuple[str, float]:
    head, found, value = text.rpartition(",cutoff=")
    if not found:
        return text, 0.0
    if _given(",cutoff=", head):
        raise ConfigError("cutoff is given twice", where=whole, hint="Write it once.")
    if re.fullmatch(r"0?\.\d+|0", value) is None:
        raise ConfigError(f"{value!r} is no cut-off", where=whole, hint="Write a number from 0 to below 1: cutoff=0.3.")
    return head, float(value)


def _given(option: str, head: str) -> bool:
    """Whether it stands there as an option, and not within a path."""
    _, found, after = head.rpartition(option)
    return bool(found) and "/" not in after


def _suffix(text: str, whole: str) -> SuffixSpec:
    options = text.removeprefix("suffix").removeprefix(":")
    if options and (not options.startswith("corpus=") or options == "corpus="):
        raise ConfigError(
            f"{options!r} is no option of a suffix look-up", where=whole, hint="Write suffix or suffix:corpus=FILE."
        )
    return SuffixSpec(options.removeprefix("corpus=") or None)


def _ngram(text: str, whole: str) -> NgramSpec:
    values: dict[str, int] = {}
    name, _, options = text.partition(":")
    way = name.removeprefix("ngram").removeprefix("-") or None
    if way is not None and way not in LOOK_UPS:
        hint = did_you_mean(way, LOOK_UPS, f"There are {', '.join(f'ngram-{w}' for w in LOOK_UPS)}.", "ngram-{}")
        raise ConfigError(f"No look-up is called {name!r}", where=text, hint=hint)
    for option in filter(None, options.split(",")):
        name, _, number = option.partition("=")
        if name in values:
            raise ConfigError(f"{name} is given twice", where=whole, hint="Write it once.")
        if name not in ("n", "min", "max") or not re.fullmatch("[0-9]{1,6}", number) or not 1 <= int(number) <= 64:
            raise ConfigError(
                f"{option!r} is no option of an n-gram draft",
                where=whole,
                hint="Write ngram:n=3 or ngram:n=4,min=2,max=8.",
            )
        values[name] = int(number)
    n, shortest = values.get("n", 3), values.get("min", 1)
    if shortest > n:
        raise ConfigError("min is above n", where=whole, hint="Write ngram:n=4,min=2.")
    return NgramSpec(n, shortest, values.get("max"), way, "min" in values)
