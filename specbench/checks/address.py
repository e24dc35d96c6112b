"""Addresses of servers, and the names under which they know their models."""

from __future__ import annotations

import re
from typing import Any

_CHAT = "/chat/completions"
_ADDED = re.compile(r"(?<=[^/:])(/+v1(/+(chat/+completions|completions|models|responses|embeddings))?)?/*$")


def check_address(value: Any) -> str | None:
    """An address without what every request adds to it: clients of OpenAI's interface are given http://host/v1, and
    some people paste the whole of a request's. A whole one that is not below /v1 stays as it is."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 2000:
        raise ValueError("an address is a text, such as http://host:8000")
    return _ADDED.sub("", value.strip(), count=1)


def split_address(address: str) -> tuple[str, str]:
    """Where requests go, and what of /v1/chat/completions the address leaves out: "" or "/v1"."""
    return (address.removesuffix(_CHAT), "/v1") if address.endswith(_CHAT) else (address, "")


def check_model_names(value: Any) -> str | None:
    """`NAME`, or `NAME,NAME` where the second server has another."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not 1 <= len(names) <= 2 or not all(name and name.isprintable() and len(name) <= 300 for name in names):
        raise ValueError("write a name, or two with a comma between, as the server's /v1/models lists them")
    return ",".join(names)
