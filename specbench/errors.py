"""Every error specbench raises on purpose.

    SpecbenchError              exit 1: the run failed
    ├── EngineError             the target or the draft could not run
    └── UsageError              exit 2: something the user can mend before running again
        ├── ConfigError         a flag or a configuration key
        ├── WorkloadError       a prompt file or data set
        ├── ModelError          a model or tokenizer that cannot be had or loaded
        │   ├── VocabularyError target and draft do not speak the same tokens
        │   └── TemplateError   the chat template fails on a prompt
        └── StoreError          a run folder that cannot be read, written or resumed

The command line prints one line, `what (where). hint`, and never a traceback.
"""

from __future__ import annotations

from specbench.text import clean


class SpecbenchError(Exception):
    """`what` went wrong, `where`, and the `hint`; `exit_code` is what the process returns."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(self.line())

    def line(self) -> str:
        place = f" ({self.where})" if self.where else ""
        hint = f" {self.hint}" if self.hint else ""
        # Two short sentences on one line: whatever came from a library may span several, and a path may hold anything.
        return clean(f"{self.what.rstrip('.')}{place}.{hint}")


class EngineError(SpecbenchError):
    """The target or the draft could not run."""


class UsageError(SpecbenchError):
    """Something the user can mend before running again."""

    exit_code = 2


class ConfigError(UsageError):
    """A flag or a configuration key is wrong."""


class WorkloadError(UsageError):
    """A prompt file or data set cannot be used."""


class ModelError(UsageError):
    """A model or tokenizer cannot be had or loaded."""


class VocabularyError(ModelError):
    """Target and draft give different meanings to the same token id."""


class TemplateError(ModelError):
    """The chat template fails on a prompt; `kind` is the type of what it raised, whose message may quote the prompt."""

    def __init__(self, what: str, *, kind: str, hint: str) -> None:
        super().__init__(what, hint=hint)
        self.kind = kind


class StoreError(UsageError):
    """A run folder cannot be read, written or resumed."""
