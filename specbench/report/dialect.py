"""Where words become a page: sentences in templates beside this file, written for a terminal, as Markdown or as HTML.

A sentence is written once. What is particular to where it is shown is its dialect: how a name that came from a user's
file is made harmless, how code, emphasis, links and marks look. Blocks (headings, tables, figures) are macros of
`blocks.md.j2` and `blocks.html.j2`.

A mark is `(predicted)` behind a claim that was not measured, and leads to the entry of that name under "What to
distrust".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import crc32

import yaml
from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemBytecodeCache,
    FunctionLoader,
    PackageLoader,
    StrictUndefined,
    Template,
)
from jinja2.bccache import Bucket
from markupsafe import Markup, escape

from specbench import text
from specbench.models.cache import cache_root
from specbench.records import FEW_PROMPTS, Finding, Reason
from specbench.report.filters import FILTERS, FUNCTIONS, bars, squash


@dataclass(frozen=True, slots=True)
class Column:
    """`cells` under `header`, whose lines are separated by newlines. In a terminal's table that is too wide, columns
    first take their `short` header and cells; then the one with the largest `gives_way` goes, and so on. Those with 0
    stay."""

    name: str
    header: str
    cells: tuple[str, ...]
    gives_way: int = 0
    short: tuple[str, tuple[str, ...]] | None = None
    left: bool = False

    @property
    def title(self) -> str:
        line = self.header.replace("-\n", "").replace("\n", " ")
        return type(self.header)(line)

    def shortened(self) -> Column:
        header, cells = self.short or (self.header, self.cells)
        return replace(self, header=header, cells=cells, short=None)


class Plain:
    """For a terminal and for JSON: words alone."""

    name = "plain"
    terminal = True

    def n(self, value: object) -> str:
        """A name, harmless."""
        return text.clean(value)

    def code(self, value: object) -> str:
        return text.clean(value)

    def strong(self, words: str) -> str:
        return words

    def link(self, words: str, to: str) -> str:
        return words

    def mark(self, code: str) -> str:
        """`(predicted)`, leading to the doubt of that code."""
        return f"({kind_of(code)})"


class Ascii(Plain):
    """For a terminal that has nothing else."""

    name = "ascii"

    def n(self, value: object) -> str:
        return text.ascii_text(text.clean(value))

    code = n


class Markdown(Plain):
    name = "md"
    terminal = False

    def n(self, value: object) -> str:
        return text.escape(value)

    def code(self, value: object) -> str:
        return text.code(value)

    def strong(self, words: str) -> str:
        return f"**{words}**"

    def link(self, words: str, to: str) -> str:
        return f"[{words}](<{to}>)" if re.search(r"[\s()<>]", to) else f"[{words}]({to})"

    def mark(self, code: str) -> str:
        return f"([{kind_of(code)}](#{code}))"


class Unlinked(Markdown):
    """Markdown without a list of doubts to lead to."""

    name = "unlinked"

    def mark(self, code: str) -> str:
        return f"({kind_of(code)})"


class Html(Plain):
    name = "html"
    terminal = False

    def n(self, value: object) -> str:
        return escape(text.clean(value))

    def code(self, value: object) -> str:
        """No line breaks inside `--draft`, which would then be typed wrongly from paper."""
        words = [escape(word) for word in text.clean(value).split(" ")]
        kept = [Markup("<span>{}</span>").format(word) if "-" in word and len(word) < 30 else word for word in words]
        return Markup("<code>{}</code>").format(Markup(" ").join(kept))

    def strong(self, words: str) -> str:
        return Markup("<strong>{}</strong>").format(words)

    def link(self, words: str, to: str) -> str:
        safe = to if re.match(r"(https://|#|[\w./-]+$)", to) and not to.startswith("/") else ""
        return Markup('<a href="{}">{}</a>').format(safe, words) if safe else escape(words)

    def mark(self, code: str) -> str:
        return Markup('(<a class="mark" href="#{}">{}</a>)').format(code, kind_of(code))


PLAIN, ASCII, MARKDOWN, UNLINKED, HTML = Plain(), Ascii(), Markdown(), Unlinked(), Html()


class Compiled(FileSystemBytecodeCache):
    """Compiled templates in the user's cache, as Python keeps modules; without one where it cannot be written."""

    def dump_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            Path(self.directory).mkdir(parents=True, exist_ok=True)
            super().dump_bytecode(bucket)

    def load_bytecode(self, bucket: Bucket) -> None:
        with suppress(OSError):
            super().load_bytecode(bucket)


_COMPILED_IN = ("report/dialect.py", "report/filters.py", "text.py")


@cache
def _made_by() -> str:
    """Compiled templates hold what these files made of their constants, of which their own checksum knows nothing."""
    code = (files("specbench").joinpath(name).read_bytes() for name in _COMPILED_IN)
    return f"{crc32(b''.join(code)):08x}"


@cache
def environment(dialect: Plain) -> Environment:
    """Templates that speak `dialect`; a value that one misses is an error. In Markdown a template says where a name
    goes in (`n`, `code`); in HTML nothing goes in unescaped either way. `say` are the sentences about a run."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader("specbench.report"), FunctionLoader(_entry)]),
        bytecode_cache=Compiled(str(cache_root() / "templates"), f"{_made_by()}-{dialect.name}-%s"),
        undefined=StrictUndefined,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=dialect is HTML,  # noqa: S701  # in Markdown, names are escaped where they enter a sentence
    )
    found.filters |= FILTERS | {
        "turned": turned,
        "n": dialect.n,
        "code": dialect.code,
        "strong": dialect.strong,
        "spark": partial(text.sparkline, ascii_only=dialect is ASCII),
        "bars": partial(bars, ascii_only=dialect is ASCII),
    }
    found.globals |= FUNCTIONS | {
        "mark": dialect.mark,
        "link_to": dialect.link,
        "few": lambda prompts: " " + dialect.mark("few-prompts") if prompts < FEW_PROMPTS else "",
        "said": lambda finding: said(finding, dialect),
        "because": lambda reason: because(reason, dialect),
        "part": lambda finding, name: part(finding, name, dialect),
        "worded": partial(worded, dialect),
        "codes": codes,
        "kind_of": kind_of,
        "columns": partial(columns, dialect),
    }
    found.globals["say"] = found.get_template("run.j2").module
    return found


def columns(dialect: Plain, table: str, rows: Sequence[Any], **given: Any) -> list[Column]:
    """A table of columns.yaml over these rows, without the columns that no row can fill."""
    made, found = template(f"columns {table}", dialect).module, list[Column]()
    t = {"terminal": dialect.terminal, "page": not dialect.terminal, "rows": rows, **given}
    for at, (name, spec) in enumerate(_tables()[table].items()):
        if not t.get(spec.get("only"), "only" not in spec):
            continue
        for i, v in enumerate(t[spec["each"]] if "each" in spec else (None,)):
            cells = tuple(getattr(made, f"cell_{at}")(t, v, i, row, n) for n, row in enumerate(rows))
            kept = t.get(spec.get("keep"), spec.get("keep") == "always")
            if not kept and all(cell == text.UNKNOWN for cell in cells):
                continue
            short = None
            if "short" in spec:
                cell = getattr(made, f"short_cell_{at}") if "short_cell" in spec else None
                less = cells if cell is None else tuple(cell(t, v, i, row, n) for n, row in enumerate(rows))
                short = getattr(made, f"short_{at}")(t, v, i), less
            key, head = f"{name} {i}" if "each" in spec else name, getattr(made, f"head_{at}")(t, v, i)
            found.append(Column(key, head, cells, spec.get("way", 0) + i, short, spec.get("left", False)))
    return found


def turned(columns: Sequence[Column], heads: Iterable[str], left: bool = False) -> list[Column]:
    """The table turned over: a line for each of its columns, and under each of `heads` what was a row."""
    first = Column("what", "measured", tuple(column.title for column in columns), left=True)
    rows = zip(*(column.cells for column in columns), strict=True)
    return [first, *(Column(head, head, cells, left=left) for head, cells in zip(heads, rows, strict=True))]


@cache
def _read(name: str) -> Mapping[str, Mapping[str, Any]]:
    page = files("specbench.report").joinpath(f"templates/{name}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it takes a tenth of the time
    return MappingProxyType(loader(page).get_single_data())


_catalogue, _tables = partial(_read, "words"), partial(_read, "columns")


def _table_source(table: str) -> Iterator[str]:
    for at, (name, spec) in enumerate(_tables()[table].items()):
        for part, written in ({"head": name, "cell": f"row.{name}"} | spec).items():
            if part in ("head", "cell", "short", "short_cell"):
                bare = part.endswith("cell") and "{{" not in written and "{%" not in written
                body = f"{{{{ {written} }}}}" if bare else written
                yield f"{{% macro {part}_{at}(t, v, i, row, n) %}}{body}{{% endmacro %}}"


def _entry(name: str) -> str | None:
    """`reasons odds` or `steps quiet why`: an entry of words.yaml as a template of its own. `columns gammas`: a table
    of columns.yaml as one."""
    found: Any = _catalogue()
    if name.startswith("columns "):
        return "".join(_table_source(name.removeprefix("columns ")))
    for key in name.split():
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, str):
        return None
    return re.sub(r"`([^`]+)`", lambda span: f"{{{{ {span[1]!r}|code }}}}", found)


def kind_of(code: str) -> str:
    """What sort of number a doubt is about: `predicted`, `assumed`, `extrapolated`, `measured` or `not known`."""
    return str(_catalogue()["doubts"][code]["kind"])


def worded(dialect: Plain, kind: str, about: Reason | Finding | str, part: str = "", **values: Any) -> str:
    """An entry of words.yaml over the values of what it is about."""
    code, given = (about, values) if isinstance(about, str) else (about.code, about.values)
    line = squash(template(f"{kind} {code} {part}".strip(), dialect).render(given))
    return Markup(line) if dialect is HTML else line  # noqa: S704  # escaped by the template


def because(reason: Reason, dialect: Plain = PLAIN) -> str:
    """A reason in words, without capital and full stop."""
    return worded(dialect, "reasons", reason)


def said(finding: Finding, dialect: Plain = PLAIN) -> str:
    """What a warning says, without capital and full stop: its own words, or those of its code."""
    if finding.message:
        return dialect.n(finding.message)
    return worded(dialect, "warnings", finding)


def part(finding: Finding, name: str, dialect: Plain = PLAIN) -> str:
    """A part of what is said of a doubt ("claim", "change") or of a step ("do", "why", "doubt")."""
    kind = "steps" if name in ("do", "why", "doubt") else "doubts"
    return worded(dialect, kind, finding, name)


def sentence_of(name: str, dialect: Plain, *about: Any, **more: Any) -> str:
    """One of the sentences about a run (run.j2), on one line."""
    return squash(getattr(environment(dialect).globals["say"], name)(*about, **more))


def json_of(record: Any) -> Any:
    """A record as `--json` prints it: plain dicts and lists, with the words of each reason and finding beside its
    code."""
    if isinstance(record, Reason):
        return {"code": record.code, "values": json_of(record.values), "words": because(record)}
    if isinstance(record, Finding):
        values = {key: value for key, value in record.values.items() if key != "said"}
        told = {"message": said(record)} if record.code in _catalogue()["warnings"] or record.message else {}
        parts = ("do", "why", "doubt") if record.code in _catalogue()["steps"] else ("claim", "change")
        words = told or {name: part(record, name) for name in parts}
        head = {"code": record.code, "severity": record.severity}
        return head | words | {"hint": record.hint, "values": json_of(values)}
    if is_dataclass(record):
        return {each.name: json_of(getattr(record, each.name)) for each in fields(record)}
    if isinstance(record, Mapping):
        return {str(key): json_of(value) for key, value in record.items()}
    return [json_of(each) for each in record] if isinstance(record, list | tuple) else record


def template(name: str, dialect: Plain = MARKDOWN) -> Template:
    return environment(dialect).get_template(name)


def blocks(name: str, dialect: Plain, page: Any) -> Any:
    """The macros of a file of blocks, where line ends count; what stands in them is squashed, so that in every other
    template a line end is a space."""
    return environment(dialect).overlay(trim_blocks=True).get_template(name).make_module({"page": page})


def entries(kind: str) -> Mapping[str, Any]:
    return _catalogue()[kind]


def codes(kind: str) -> Sequence[str]:
    """Every code that has words: of "reasons", "warnings", "doubts", "steps" or "checks"."""
    return tuple(_catalogue()[kind])
