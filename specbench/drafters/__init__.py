"""Who proposes tokens."""

from specbench.drafters.spec import DraftSpec, NgramSpec, parse_draft, reader_of, require_in_process, with_cutoff

__all__ = ["DraftSpec", "NgramSpec", "parse_draft", "reader_of", "require_in_process", "with_cutoff"]
