"""Should we turn speculative decoding on, on our traffic, with this draft, at which draft length, how sure are we?

From Python: `measure`, `sweep`, `load_run`, `compare` (docs/api.md). They are loaded when they are first used, so that
importing the package stays cheap.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Compared", "Run", "compare", "load_run", "measure", "sweep"]

if TYPE_CHECKING:
    from specbench.api import Compared, Run, compare, load_run, measure, sweep
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("specbench.api"), name)

    def __dir__():
        return sorted({*globals(), *__all__})
