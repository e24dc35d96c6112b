"""Briefs as HTML: of kept runs, and one full of names that want to break out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from fake_summary import of_run, stored_of, summary_of, with_second_draft
from fake_worlds import MIXED

from specbench.analysis.contract import Summary
from specbench.analysis.summarise import summarise
from specbench.records import warned
from specbench.report.brief import render_page
from specbench.store import read_run

REPORTS = Path(__file__).parent.parent / "reports"
RUNS = ("example", "llamacpp", "hybrid")
LONG = "x" * 120
PWN = '<script>document.title="pwned"</script>'


def hostile() -> Summary:
    """Every name that comes from a user's files, or from a server, tries something."""
    summary = of_run(stored_of(MIXED, Path("reports")), with_second_draft(summary_of(MIXED)))
    first, second = summary.drafts
    categories = (
        replace(first.categories[0], category=f"{LONG}<svg onload=alert(1)>"),
        replace(first.categories[1], category='"><img src=x onerror=\'document.title="pwned"\'>'),
        *first.categories[2:],
    )
    facts = replace(
        summary.facts,
        argv=("specbench", "sweep", f"--{LONG}", "</code></pre>" + PWN, "[a](javascript:x)"),
        target=replace(summary.facts.target, name=f"[b](JaVaScRiPt:alert(1)) {PWN}"),
        workload=replace(summary.facts.workload, source="\x00\x07\u202ehidden &#x202e;too.jsonl"),
    )
    return replace(
        summary,
        target=f'</title>{PWN}"',
        engine=f"{PWN} ![x](https://example.org/x.svg)",
        hardware='<b onclick="x">raw</b> ([predicted](#price))',
        drafts=(replace(first, draft=PWN, categories=categories), second),
        facts=facts,
        warnings=(warned("odd", f"{PWN} [x](javascript:x)", f"Do {PWN}."),),
    )


@cache
def html_of(name: str) -> str:
    """The HTML of `hostile` or of a kept run."""
    if name == "hostile":
        return render_page(hostile(), REPORTS / "example")
    return render_page(summarise(read_run(REPORTS / name)), REPORTS / name)


ALL = ("hostile", *RUNS)
