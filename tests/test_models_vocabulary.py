"""Which vocabulary differences stop a pair, and which do not."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from specbench.errors import VocabularyError
from specbench.models.vocabulary import check_vocabularies

BYTES = sorted(ByteLevel.alphabet())
BASE = ["<end>", *BYTES, "ab", "bc", "abc"]  # 260 tokens
MERGES = [("a", "b"), ("b", "c"), ("ab", "c")]


def tokenizer(
    tokens: list[str] = BASE, merges: list[tuple[str, str]] = MERGES, eos: str | None = "<end>", start: int = 0
) -> Any:
    vocabulary = {token: index + start for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


def test_same_tokenizer_has_nothing_to_say() -> None:
    report = check_vocabularies(tokenizer(), tokenizer(), 260, 260)
    assert (report.shared, report.padding, report.cautions) == (260, 0, ())


@pytest.mark.parametrize(("target_size", "draft_size", "padding"), [(320, 264, -56), (264, 320, 56)])
def test_padded_logits_pass_and_drafting_stops_at_the_smaller(target_size: int, draft_size: int, padding: int) -> None:
    report = check_vocabularies(tokenizer(), tokenizer(), target_size, draft_size)
    assert (report.shared, report.padding, report.cautions) == (264, padding, ())


def test_one_token_elsewhere_is_refused_with_its_id_and_both_names() -> None:
    other = [*BASE[:100], "A rather long token indeed", *BASE[101:]]
    with pytest.raises(VocabularyError) as caught:
        check_vocabularies(tokenizer(), tokenizer(other), 260, 260)
    assert str(caught.value) == (
        f"target and draft differ in 1 of 260 tokens: id 100 is {BASE[100]!r} and 'A rather long token…'. "
        "Use a draft trained with the target's tokenizer, or ngram:n=3, which needs none."
    )


def test_shifted_vocabulary_counts_all_and_names_the_first_four() -> None:
    with pytest.raises(VocabularyError, match="differ in 259 of 259 tokens: id 1 is ") as caught:
        check_vocabularies(tokenizer(), tokenizer(start=1), 261, 261)
    assert caught.value.what.count("; ") == 3


@pytest.mark.parametrize(
    "name", ["<|reserved_special_token_7|>", "<unused12>", "[unused3]", "<|extra_4|>", "[PAD260]", "<SPECIAL_9>"]
)
def test_placeholders_may_stand_against_anything(name: str) -> None:
    report = check_vocabularies(tokenizer([*BASE, name]), tokenizer([*BASE, "<|tool|>"]), 261, 261)
    assert (report.shared, report.cautions) == (261, ())


@pytest.mark.parametrize("name", ["<tool>", "<|im_end|>", "<pad>", "extra_4", "<extraordinary>"])
def test_other_names_are_not_placeholders(name: str) -> None:
    with pytest.raises(VocabularyError, match="differ in 1 of 261 tokens"):
        check_vocabularies(tokenizer([*BASE, name]), tokenizer([*BASE, "<|tool|>"]), 261, 261)


def test_trailing_token_of_the_target_that_the_draft_can_read_is_a_caution() -> None:
    report = check_vocabularies(tokenizer([*BASE, "<think>"]), tokenizer(), 264, 264)
    assert (report.shared, [caution.code for caution in report.cautions]) == (264, ["target-only-tokens"])
    assert "has 1 token that" in report.cautions[0].message


def test_token_that_the_draft_cannot_read_is_a_caution_of_its_own() -> None:
    report = check_vocabularies(tokenizer([*BASE, "<think>"]), tokenizer(), 261, 260)
    (caution,) = report.cautions
    assert caution.code == "tokens-beyond-draft"
    assert "1 token beyond the draft's 260 ids (id 260 is '<think>')" in caution.message


def test_extra_token_of_the_draft_is_cut_off() -> None:
    report = check_vocabularies(tokenizer(), tokenizer([*BASE, "<think>"]), 260, 261)
    assert (report.shared, report.cautions) == (260, ())


def test_other_end_token_is_a_caution_with_both_ids() -> None:
    report = check_vocabularies(tokenizer(), tokenizer(eos="abc"), 260, 260)
    assert [caution.code for caution in report.cautions] == ["eos-differs"]
    assert "ids 0 and 259" in report.cautions[0].message


def test_unstated_end_token_is_unknown_not_different() -> None:
    report = check_vocabularies(tokenizer(), tokenizer(eos=None), 260, 260)
    assert report.cautions == ()


def test_other_merges_are_noted_and_allowed() -> None:
    reordered = [("b", "c"), ("a", "b"), ("ab", "c")]
    report = check_vocabularies(tokenizer(), tokenizer(merges=reordered), 260, 260)
    assert [caution.code for caution in report.cautions] == ["merges-differ"]


def test_tokenizer_without_merge_rules_is_unknown_not_different() -> None:
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(BASE)}, unk_token="<end>"))
    report = check_vocabularies(
        tokenizer(), PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>"), 260, 260
    )
    assert report.cautions == ()
