"""What may come in: `keys` are those of the configuration, `fields` are records read from JSON, `stored` is run.json.

Plain values in, checked values out; ValueError says what is wrong, and the caller, who knows the place, says where.
"""

from __future__ import annotations

from specbench.checks.keys import MAX_BATCH, MAX_GAMMA, POLICY_CHECKS, RUN_CHECKS, parse_gammas

__all__ = ["MAX_BATCH", "MAX_GAMMA", "POLICY_CHECKS", "RUN_CHECKS", "parse_gammas"]
