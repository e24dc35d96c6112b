"""The name under which a server knows its model, which a request has to give where it lists several."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from specbench.backends.server.adapter import Get
from specbench.backends.server.failures import AnswerError
from specbench.backends.server.openai import listed, models_of
from specbench.errors import ConfigError, EngineError, SpecbenchError
from specbench.text import shown

# So many names fit on an error's one line.
MOST_SHOWN = 10


async def model_name(get: Get, url: str, wanted: str | None, guess: str | None) -> str | None:
    """The name for requests: the one `wanted`, else `guess` where the server lists it, else that of the only model;
    None where it lists none. Raises ConfigError for a name that is not in its list, and where it lists several models
    of which none is wanted: some servers would take any, and load it or answer with another."""
    try:
        listing = await listed(get)
        names = [row.id for row in listing if row.id]
        models = models_of(listing)
    except AnswerError as error:
        raise EngineError(
            f"The list of models is not as servers with OpenAI's interface have it: {error}",
            where=f"{url}, /v1/models",
            cure="Check the address.",
        ) from None
    if wanted is not None:
        # LiteLLM lists `openai/*` for all of a kind.
        if names and not any(wanted == name or ("*" in name and fnmatchcase(wanted, name)) for name in names):
            raise _unnamed(f"The server does not list a model {shown(wanted)}, but", names, url, wanted)
        return wanted
    if guess in names:
        return guess
    if len(models) > 1:
        raise _unnamed(f"The server lists {len(models)} models, and requests have to name one:", names, url, guess)
    return models[0][0].id if models else None


def _unnamed(what: str, names: Sequence[str], url: str, wanted: str | None) -> SpecbenchError:
    near = difflib.get_close_matches(wanted or "", names, n=1)
    first = [*near, *(name for name in names if name not in near)][:MOST_SHOWN]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ConfigError(
        f"{what} {', '.join(map(shown, first))}{more}", where=url, cure="Name one of these with --served-model-name."
    )
