"""The words of the field, from one file: `glossary.yaml`. docs/glossary.md is made from it, and so is the list of
words under every text of `specbench explain`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import yaml

from specbench.errors import ConfigError
from specbench.text import did_you_mean

# What no reader sees as prose: fenced blocks, code spans, the address of a link, HTML tags.
_HIDDEN = re.compile(
    r"^```.*?^```|(?<![\\`])(?P<fence>`+)(?!`).*?(?<!`)(?P=fence)(?!`)|(?<=\])\([^)\n]*\)|<[^>\n]*>",
    re.DOTALL | re.MULTILINE,
)

_HEADING = re.compile(r"^#+ .*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Term:
    """One entry. `plain` is a sentence; `also` are other names and `forms` other spellings, both found in texts;
    `elsewhere` is what others call it, `confused` what it must not be taken for, `see` names other terms."""

    name: str
    plain: str
    formula: str | None = None
    unit: str | None = None
    confused: str | None = None
    elsewhere: str | None = None
    also: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    see: tuple[str, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way in which a text may write it, but for a capital at the beginning of a sentence."""
        return (self.name, *self.also, *self.forms)


@cache
def terms() -> Mapping[str, Term]:
    """Every term by its name, in the order of the file: by subject."""
    entries = yaml.safe_load(files("specbench.report.explain").joinpath("glossary.yaml").read_text(encoding="utf-8"))
    return MappingProxyType({name: _term(name, dict(values)) for name, values in entries.items()})


def _term(name: str, values: dict[str, Any]) -> Term:
    also, forms, see = (tuple(values.pop(key, ())) for key in ("also", "forms", "see"))
    # `not` is the natural word in the file and no name in Python.
    return Term(name, confused=values.pop("not", None), also=also, forms=forms, see=see, **values)


def slug(term: Term | str) -> str:
    """The anchor of a term in a text that lists its words."""
    name = term if isinstance(term, str) else term.name
    return re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")


def find(word: str) -> Term:
    """The term of that name or spelling, in any case. Raises ConfigError with the nearest one where there is none."""
    known = {spelling.lower(): term for term in terms().values() for spelling in term.spellings}
    asked = " ".join(word.lower().split())
    if asked in known:
        return known[asked]
    hint = did_you_mean(asked, known, "docs/glossary.md lists those that others call otherwise.", "{!r}")
    raise ConfigError(f"No term {word!r} in the glossary", where="--term", hint=hint)


def used_in(markdown: str) -> list[Term]:
    """The terms that a text uses, in the order of their first use: whole words in any declared spelling, the longest
    first ("target step" is not also "target"), outside code, addresses and tags."""
    return list(dict.fromkeys(term for _, _, term in _uses(markdown)))


def linked(markdown: str) -> str:
    """The text with each term linked to its anchor at its first use outside a heading."""
    headings = [found.span() for found in _HEADING.finditer(markdown)]
    done: set[str] = set()
    parts, at = [], 0
    for start, end, term in _uses(markdown):
        if term.name in done or any(first <= start < last for first, last in headings):
            continue
        done.add(term.name)
        parts += [markdown[at:start], f"[{markdown[start:end]}](#{slug(term)})"]
        at = end
    return "".join([*parts, markdown[at:]])


def words(used: Iterable[Term]) -> str:
    """These terms with their meanings, as a Markdown list with anchors, by name."""
    return "\n".join(f'- <a id="{slug(term)}"></a>{entry(term)}' for term in sorted(used, key=by_name))


def entry(term: Term) -> str:
    """`**tau** (tokens per round): how many ...`"""
    names = f"**{term.name}**" + (f" ({', '.join(term.also)})" if term.also else "")
    return f"{names}: {term.plain}"


def by_name(term: Term) -> str:
    """What a list for looking up is sorted by."""
    return term.name.lower()


def _uses(markdown: str) -> Iterator[tuple[int, int, Term]]:
    pattern, owners = _pattern()
    seen = _HIDDEN.sub(lambda found: re.sub(r"[^\n]", "\0", found[0]), markdown)
    for found in pattern.finditer(seen):
        yield found.start(), found.end(), owners[_key(found[0])]


@cache
def _pattern() -> tuple[re.Pattern[str], Mapping[str, Term]]:
    """One pattern for all spellings, and whose they are. A capital may begin a spelling that has none, unless it is a
    single letter: R is a count and r a rate."""
    owners: dict[str, Term] = {}
    for term in terms().values():
        for spelling in term.spellings:
            owners[spelling] = term
            if len(spelling) > 1:
                owners[spelling[0].upper() + spelling[1:]] = term
    longest = sorted(owners, key=len, reverse=True)
    choices = "|".join(r"\s+".join(re.escape(part) for part in spelling.split(" ")) for spelling in longest)
    return re.compile(rf"(?<![\w/-])(?:{choices})(?![\w/-])"), owners


def _key(found: str) -> str:
    return " ".join(found.split())


def term_markdown(term: Term, level: int = 1) -> str:
    """One entry as a section of Markdown; other terms are linked."""
    lines = [f"{'#' * level} {term.name}", "", term.plain, ""]
    facts = (
        ("Formula", f"`{term.formula}`" if term.formula else None),
        ("Unit", term.unit),
        ("Also", ", ".join(term.also)),
        ("Elsewhere", term.elsewhere),
        ("Not to be confused with", term.confused),
        ("See also", ", ".join(f"[{name}](#{slug(name)})" for name in term.see)),
    )
    lines += [f"- {what}: {value}" for what, value in facts if value]
    return "\n".join(lines).rstrip() + "\n"
