"""Who proposes tokens."""

from specbench.drafters.spec import DraftSpec, NgramSpec, parse_draft

__all__ = ["DraftSpec", "NgramSpec", "parse_draft"]
