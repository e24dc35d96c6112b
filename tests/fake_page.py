"""Briefs to render as HTML: one with every structure that they have, one full of names that want to break out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from specbench.report.page import to_html

REPORTS = Path(__file__).parent.parent / "reports"
RUNS = ("example", "llamacpp", "drafters")

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="600" height="300"><text style="font-family: 'DejaVu Sans'">x</text></svg>
"""
BRIEF = """\
# Should `demo:target` decode speculatively?

**GO, of 2 drafts: turn `a` on.** It ran 1.28x [1.17, 1.39] as fast (measured).

**UNCLEAR: `b` is not settled.** It may be 1.10x (predicted, D2).

## By category

### `a`

| category | speedup | predicted |
| :-- | --: | --: |
| chat | 1.20x [1.10, 1.30] | 1.15x (few prompts, D1) |

### `a`

![Speedup by *gamma*](figures/speedup.svg)

## Evidence

```sh
specbench sweep --max-new-tokens 32
```

See [the paper](https://example.org/paper), and what is not listed (assumed, D9).

## What to distrust

- **D1**, *measured*: Few prompts.
- **D2**, *predicted*: A model of costs.

## Decision

| | |
| :-- | :-- |
| Name | |
| Date | |

## Provenance

| | |
| :-- | :-- |
| run | `example` |
"""
LONG = "x" * 120
HOSTILE = f"""\
# Should `{LONG}` decode?

**NO-GO: leave `<script>document.title="pwned"</script>` off.** <script>document.title="pwned"</script>

[a](javascript:document.title="pwned") <javascript:alert(1)> [b](  JaVaScRiPt:alert(1)) [c](data:text/html,x)
[d](vbscript:x) [e](https://example.org/"onclick="x) <b onclick="x">raw</b> \x00\x07\u202ehidden &#x202e;too

![x](https://example.org/x.svg) ![y](//example.org/y.svg) ![z](data:image/png;base64,AAAA) ![q" onerror="x](a.svg)

## {LONG} `"><img src=x onerror='document.title="pwned"'>`

| `{LONG}` | n |
| :-- | --: |
| {LONG}<svg onload=alert(1)> | 1 |

```"><script>document.title="pwned"</script>
--{LONG} </code></pre><script>document.title="pwned"</script>
```

Words ![and a figure](figures/speedup.svg) among them.

> ## D1
>
> - **D1**, a name, and a link [to (predicted, D1)](#d1)
> - **D1**, again
"""


def page(markdown: str = BRIEF, title: str = "A brief") -> str:
    """The Markdown as HTML, with the one figure that it may name."""
    return to_html(markdown, {"figures/speedup.svg": SVG}, title)


@cache
def html_of(name: str) -> str:
    """The HTML of `brief`, `hostile` or a kept run."""
    if name in RUNS:
        return to_html((REPORTS / name / "brief.md").read_text(), REPORTS / name, name)
    return page() if name == "brief" else page(HOSTILE, '</title><script>x</script>"')


ALL = ("brief", "hostile", *RUNS)
