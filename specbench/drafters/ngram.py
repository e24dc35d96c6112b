"""The n-gram look-up as the loop drives it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbench.acceptance.loop import Proposal
from specbench.drafters.lookup import NgramLookUp


class NgramDrafter(NgramLookUp):
    """A look-up that drafts."""

    def propose(self, x: Sequence[int], k: int, generator: torch.Generator | None = None) -> Proposal:
        return Proposal(self.find(x, k))
