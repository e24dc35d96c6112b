"""What the target's own files make of prompts and texts: tokens that should not be there, ends, and sampling."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.config import RunConfig
from specbench.models import LoadedModel
from specbench.models.defaults import CODE, own_cautions
from specbench.models.encoding import Today
from specbench.models.prompts import end_tokens
from specbench.records import Finding, Severity
from specbench.verify.findings import noticed

# What a check says where a run would say nothing, and how bad it is where a run warns.
_CHECKS: dict[str, tuple[Severity, str]] = {
    "end-in-prompt": ("note", "no prompt ends with an end-of-sequence token"),
    "two-begins": ("note", "no prompt begins with two begin-of-text tokens"),
    "date-in-prompt": ("note", "the date is in no prompt"),
    "end-tokens": ("note", "the files of the target agree on how texts end"),
    CODE: ("note", "the target's files ask for no other sampling than this"),
}


def own_files(target: LoadedModel, config: RunConfig, encoded: Sequence[Sequence[int]], today: Today) -> list[Finding]:
    """One finding for each check; `encoded` are the prompts as token ids, written `today`."""
    cautions = {each.code: each for each in own_cautions(target, config, encoded, end_tokens(target), today)}
    found = []
    for code, (state, sound) in _CHECKS.items():
        caution = cautions.get(code)
        if caution is None:
            found.append(noticed(code, "ok", sound))
            continue
        # Some models were trained on turns that end so; a tokenizer that does it to any text is a slip.
        slip = code == "end-in-prompt" and target.tokenizer.chat_template is None
        found.append(noticed(code, "broken" if slip else state, caution.message, caution.hint))
    return found
