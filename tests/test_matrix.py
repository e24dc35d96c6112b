"""Every family of causal language models in transformers, tiny and random, runs or is refused in one line: the rows of
families/table.yaml, of which docs/families.md is made."""

from __future__ import annotations

import pytest
import transformers
from conftest import full
from families.outcomes import TABLE, outcome
from families.recipes import UnbuiltError, model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROWS: dict[str, list[str]] = TABLE["families"]
UNBUILT = [family for family, row in ROWS.items() if row == ["unbuilt"]]
# What people serve most: windows and experts, latent attention, states.
SERVED = ("llama", "qwen3", "qwen3_moe", "mistral", "gemma3_text", "gpt_oss", "deepseek_v3", "qwen3_5_text")


@pytest.mark.parametrize("family", [*SERVED, *full(*(name for name in ROWS if name not in (*SERVED, *UNBUILT)))])
def test_a_family_is_what_its_row_says(family: str) -> None:
    assert outcome(family) == ROWS[family]


@pytest.mark.full
@pytest.mark.parametrize("family", UNBUILT)
def test_a_family_without_a_verdict_is_not_built(family: str) -> None:
    with pytest.raises(UnbuiltError):
        model(family)


@pytest.mark.skipif(transformers.__version__ != TABLE["transformers"], reason="the table is of another transformers")
def test_every_family_has_a_row() -> None:
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(ROWS) == set()
