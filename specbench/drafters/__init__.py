"""Who proposes tokens."""

from specbench.drafters.spec import (
    DraftSpec,
    NgramSpec,
    SuffixSpec,
    parse_draft,
    reader_of,
    require_in_process,
    with_cutoff,
)

__all__ = [
    "DraftSpec",
    "NgramSpec",
    "SuffixSpec",
    "parse_draft",
    "reader_of",
    "require_in_process",
    "with_cutoff",
]
