"""Who proposes tokens: `ngram:n=3` looks them up in the text, everything else is the name of a draft model."""

from __future__ import annotations

from specbench.drafters.ngram import NgramSpec
from specbench.errors import ConfigError

PLANNED = ("skip", "cross")


def parse_draft(text: str) -> NgramSpec | str:
    """A `--draft` value: an n-gram look-up, or the name of a model. Raises ConfigError."""
    kind, colon, options = text.partition(":")
    if kind in PLANNED and colon:
        raise ConfigError(
            f"`{kind}:` drafters are not in this version", where=text, cure="Use a draft model or ngram:n=3."
        )
    if kind != "ngram" or (not colon and text != "ngram"):
        return text
    values = {"n": 3, "min": 1}
    for option in filter(None, options.split(",")):
        name, _, number = option.partition("=")
        if name not in values or not number.isdecimal() or not 1 <= int(number) <= 64:
            raise ConfigError(
                f"{option!r} is no option of an n-gram drafter", where=text, cure="Write ngram:n=3 or ngram:n=4,min=2."
            )
        values[name] = int(number)
    if values["min"] > values["n"]:
        raise ConfigError("min is above n", where=text, cure="Write ngram:n=4,min=2.")
    return NgramSpec(values["n"], values["min"])
