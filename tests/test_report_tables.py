"""What a terminal shows: 80 columns, no colour needed, ASCII if it must be."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from fake_summary import summary_of, with_second_draft
from fake_worlds import FEW, GO, MIXED, NO_GO, WORLDS
from rich.cells import cell_len
from rich.console import Console

from specbench.analysis.contract import Summary
from specbench.records import Policy, warned
from specbench.report.layout import sweep_page


class Terminal(io.StringIO):
    """A text file with the encoding that rich asks it for."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def shown(summary: Summary, width: int = 80, encoding: str = "utf-8", colour: bool = False) -> str:
    terminal = Terminal(encoding)
    console = Console(file=terminal, width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(sweep_page(summary))
    return terminal.getvalue()


def lines(page: str) -> list[str]:
    return [line.rstrip() for line in page.splitlines()]


def test_the_mixed_world_at_80_columns() -> None:
    assert lines(shown(summary_of(MIXED))) == [
        "demo:target on Example CPU 3000, 2 cores, 8 GiB",
        "transformers models in process, specbench loop (cpu)",
        "",
        "UNCLEAR  demo:draft: 1.17x [1.04, 1.30] decode, best gamma 1, asked for 1.10x",
        "  the chance of 1.10x or more is 84%",
        "  about 182 more prompts like these, 222 in all, would settle it, if the speedup",
        "  stays where it is",
        "                                       speedup  end to         slower   same",
        "gamma    r   tau  survival      [95% interval]     end  tok/s  <0.95x   text",
        "────────────────────────────────────────────────────────────────────────────",
        "    1  52%  1.52  ▅         1.18x [1.05, 1.31]   1.16x   47.1      2%  40/40",
        "    2  40%  1.79  ▅▃        1.15x [1.02, 1.28]   1.14x   46.1      5%  40/40",
        "    4  25%  2.00  ▅▃▂▁      0.97x [0.84, 1.10]   0.97x   38.7     23%  36/40",
        "Measured wall clock of decoding over 40 prompts, one at a time. r: accepted /",
        "drafted tokens (falls as gamma grows). tau: tokens per round, with the target's",
        "own. Survival: share of rounds whose first 1, 2, .. drafts were accepted. Noise",
        "floor: 1.2%. Not shown at this width: rounds, tau replayed, predicted.",
        "",
        "                        speedup, decode   best",
        "category   verdict       [95% interval]  gamma  prompts",
        "───────────────────────────────────────────────────────",
        "code       GO        1.74x [1.53, 1.95]      4       12",
        "maths      GO        1.42x [1.25, 1.59]      2       10",
        "chat       UNCLEAR  1.08x (no interval)      1        4",
        "summarise  NO-GO     0.93x [0.87, 0.99]      1       14",
        "",
        "warning target-only-tokens: The target has 12 tokens that the draft was not",
        "trained on, and will never propose.",
        "  If the workload uses them (tool calls, thinking), use a draft trained with",
        "  them.",
    ]


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal_and_none_has_codes(world: object, width: int, encoding: str) -> None:
    page = shown(summary_of(world), width, encoding)  # type: ignore[arg-type]
    assert max(cell_len(line) for line in page.splitlines()) <= width
    assert "\x1b" not in page
    page.encode(encoding)


@pytest.mark.parametrize("world", [GO, NO_GO, FEW], ids=["go", "no-go", "few"])
def test_the_verdict_is_a_word_before_it_is_a_colour(world: object) -> None:
    summary = summary_of(world)  # type: ignore[arg-type]
    verdict = next(line for line in shown(summary).splitlines() if summary.drafts[0].draft in line)
    assert verdict.startswith(summary.drafts[0].verdict + " ")
    assert "\x1b[" in shown(summary, colour=True)


def test_a_wide_terminal_gets_every_column() -> None:
    page = shown(summary_of(GO), width=160)
    assert "Not shown" not in page
    assert "▇▅▄▃▃▂▂▂ .78 .61 .47 .37 .29 .23 .18 .14" in page
    assert "  1,699  " in page


def test_columns_without_a_number_are_left_out() -> None:
    page = shown(summary_of(FEW))
    assert "replayed" not in page and "text" not in page and "1.55x (no interval)" in page


def test_ascii_survival_is_in_tenths() -> None:
    page = shown(summary_of(GO), encoding="ascii")
    assert "7643" in page and "accepted in tenths" in " ".join(page.split())


def test_names_from_files_cannot_break_the_page() -> None:
    summary = summary_of(MIXED)
    draft = summary.drafts[0]
    rude = replace(draft.categories[0], category="[red]données\x1b[31m\n" + "x" * 200)
    summary = replace(
        summary,
        drafts=(replace(draft, draft="[bold]évil", categories=(rude, *draft.categories[1:])),),
        warnings=(warned("code", "[link=x]ünder", "[/]"),),
    )
    for encoding in ("utf-8", "ascii"):
        page = shown(summary, encoding=encoding)
        assert "\x1b" not in page and "[red]donn" in page and "[bold]" in page
        assert max(cell_len(line) for line in page.splitlines()) <= 80
        page.encode(encoding)


def test_every_draft_has_its_verdict() -> None:
    page = shown(with_second_draft(summary_of(GO)))
    assert "GO  demo:draft" in page and "NO-GO  ngram:n=3" in page


def test_the_policy_names_the_columns() -> None:
    terminal = Terminal("utf-8")
    console = Console(file=terminal, width=120)
    policy = Policy(min_speedup=1.3, confidence=0.9, slower_than=0.9, metric="e2e")
    console.print(sweep_page(replace(summary_of(GO), policy=policy)))
    page = terminal.getvalue()
    assert "end to end, best gamma 4, asked for 1.30x" in page and "[90% interval]" in page and "<0.90x" in page
