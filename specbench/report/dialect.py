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
from textwrap import shorten
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
from specbench.report.schedule import ranges, sglang_schedule, tensorrt_schedule, vllm_schedule

# More positions than this do not fit beside the bars, and more of a name not beside a table's numbers.
_SURVIVAL_NUMBERS = 8
_NAME_WIDTH = 24


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


@cache
def _made_by() -> str:
    """Compiled templates hold the options of this file, which their own checksum does not."""
    return f"{crc32(files('specbench.report').joinpath('dialect.py').read_bytes()):08x}"


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
    found.filters |= {
        "n": dialect.n,
        "code": dialect.code,
        "strong": dialect.strong,
        "listed": listed,
        "turned": turned,
        "squash": squash,
        "closed": lambda lines: type(lines)("".join(f"{line}\n" for line in lines.splitlines() if line.strip())),
        "kwargs": text.template_kwargs,
        "of_100": of_100,
        "cell": text.cell,
        "x": text.speedup,
        "asked": text.asked,
        "exactly": text.exactly,
        "fine": text.fine,
        "pct": text.percent,
        "chance": text.chance,
        "ms": text.milliseconds,
        "size": lambda count, unit="B", limit=None: text.size(count, unit, limit),
        "num": text.whole,
        "n0": lambda value: f"{value:,.0f}",
        "d1": lambda value: f"{value:.1f}",
        "d2": text.digits,
        "count": text.count,
        "out_of": text.out_of,
        "est": lambda row, limit=None: text.estimate(row.speedup, row.speedup_low, row.speedup_high, limit),
        "capital": text.capital,
        "small": lambda words: words[:1].lower() + words[1:],
        "sentence": text.sentence,
        "shortened": lambda name: shorten(name, _NAME_WIDTH, placeholder=".."),
        "spark": partial(text.sparkline, ascii_only=dialect is ASCII),
        "bars": partial(_bars, ascii_only=dialect is ASCII),
        "ranged": lambda one, digits=2: ranged(one.value, one.low, one.high, digits),
        "ranges": ranges,
        "vllm_schedule": vllm_schedule,
        "tensorrt_schedule": tensorrt_schedule,
        "sglang_schedule": sglang_schedule,
    }
    found.globals |= {
        "mark": dialect.mark,
        "link_to": dialect.link,
        "estimate": text.estimate,
        "interval": text.interval,
        "spread": text.spread,
        "decimals": text.apart,
        "few": lambda prompts: " " + dialect.mark("few-prompts") if prompts < FEW_PROMPTS else "",
        "said": lambda finding: said(finding, dialect),
        "because": lambda reason: because(reason, dialect),
        "part": lambda finding, name: part(finding, name, dialect),
        "worded": partial(worded, dialect),
        "codes": codes,
        "kind_of": kind_of,
        "columns": partial(columns, dialect),
        "ranged": ranged,
        "ms_range": _ms_range,
        "pair": pair,
        "pair_ms": lambda *seconds: pair(*(None if value is None else 1000 * value for value in seconds)),
        "UNKNOWN": text.UNKNOWN,
        "shown": text.Shown,
        "ms": text.ms,
        "divide": text.divide,
        "multiply": text.multiply,
        "add": text.add,
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


def listed(items: Iterable[str]) -> str:
    """`a, b and c`; of markup it stays markup."""
    each = list(items)
    if any(hasattr(item, "__html__") for item in each):
        each = [escape(item) for item in each]
        return Markup(" and ").join([Markup(", ").join(each[:-1]), each[-1]]) if len(each) > 1 else each[0]
    return text.join(each)


def squash(words: str) -> str:
    """On one line, with single spaces; of markup it stays markup."""
    line = re.sub(r"[ \t\n]+", " ", str(words)).strip()
    return Markup(line) if hasattr(words, "__html__") else line  # noqa: S704  # it was markup


def ranged(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """`2.31 [2.20, 2.42]`; the number alone where there is no interval."""
    if value is None:
        return text.UNKNOWN
    ends = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{ends}"


def _ms_range(value_s: float, low_s: float, high_s: float) -> str:
    shown = [f"{1000 * seconds:,.{2 if value_s < 0.01 else 1}f}" for seconds in (value_s, low_s, high_s)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def pair(one: float | None, other: float | None, digits: int | None = None) -> str:
    """`46.1 / 9.4`: the target alone and with the draft, or A and B; unknown where neither is known."""
    if one is None and other is None:
        return text.UNKNOWN
    return " / ".join(
        text.UNKNOWN if v is None else f"{v:,.{text.decimals(v) if digits is None else digits}f}" for v in (one, other)
    )


def _bars(survival: Sequence[float | None], rows: Iterable[Any], *, ascii_only: bool) -> str:
    """Bars and, where those of all `rows` fit beside them, the shares: `▅▃ .52 .31`."""
    longest = max(len(row.survival) for row in rows)
    line = text.sparkline(survival, ascii_only=ascii_only) or text.UNKNOWN
    if longest > _SURVIVAL_NUMBERS:
        return line
    shares = " ".join("?" if share is None else f"{share:.2f}".removeprefix("0") for share in survival)
    return f"{line:{longest}} {shares}".rstrip()


def of_100(share: float) -> str:
    """`8 were`, `1 was`, `fewer than 1 was`: how many of a hundred, with their verb."""
    many = text.percent(share).rstrip("%").replace("<", "fewer than ").replace(">", "more than ")
    return f"{many} {'was' if many.endswith('than 1') or many == '1' else 'were'}"


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
