"""What `make test` proves though it is quick: every claim that users rest on has a test that is not marked `full`.

A test may be marked `full` where another one guards the same claim, and it takes more than a second of processor time,
repeats the proof with more models, faults or bytes, or needs what is slow to start.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ALL, FULL

# Claim -> tests, without the parameters.
CLAIMS = {
    "greedy text is the target's own": ["test_loop.py::test_greedy_text_is_the_text_of_transformers_generate"],
    "rounds are those of transformers": [
        "test_against_transformers.py::test_rounds_are_those_of_transformers",
        "test_check.py::test_the_command_prints_tables_and_json_without_any_text",
    ],
    "a miscount in a stored run is seen": ["test_check.py::test_strict_tells_a_difference_by_the_exit_code"],
    "sampled text follows the target, and a wrong rule does not": [
        "test_distribution.py::test_text_with_a_draft_model_follows_the_target",
        "test_distribution.py::test_the_same_test_rejects_a_wrong_rule",
    ],
    "replay is the loop, and an off-by-one shows": [
        "test_replay.py::test_greedy_replay_is_the_loop_round_by_round",
        "test_replay.py::test_sampling_replay_is_the_sum_over_all_ways_the_rounds_can_fall",
        "test_replay.py::test_a_planted_off_by_one_is_caught",
        "test_replay_runs.py::test_replayed_and_live_rounds_are_equal_in_float32",
        "test_ngram.py::test_greedy_text_is_kept_and_replay_is_the_loop",
        "test_drafters.py::test_a_cut_off_replays_exactly",
        "test_cross.py::test_a_cross_draft_keeps_the_text_and_replays_exactly",
    ],
    "a log gives the rounds of the run that wrote it, and its texts stay in": [
        "test_recorded_runs.py::test_a_log_of_a_live_run_gives_its_rounds_one_by_one",
        "test_recorded_sampled.py::test_sampled_logs_give_the_acceptance_of_live_speculation",
        "test_recorded_private.py::test_no_text_of_a_source_gets_out",
    ],
    "a draft head in replay is the loop, and states of another place are seen": [
        "test_heads_replay.py::test_rounds_are_those_of_the_loop",
        "test_heads_runs.py::test_rounds_live_and_replayed_are_equal",
        "test_heads_doctor.py::test_layers_off_by_one_are_named_with_those_that_fit",
        "test_heads_block.py::test_it_drafts_what_it_was_trained_to",
        "test_heads_block.py::test_text_is_the_targets_and_rounds_are_those_of_the_replay",
    ],
    "a batch is its prompts alone": [
        "test_many.py::test_every_row_is_the_prompt_alone",
        "test_many.py::test_a_planted_fault_of_the_batch_is_seen",
        "test_many_runs.py::test_batches_are_summarised_like_prompts_and_replayed_exactly",
    ],
    "our layers are those of transformers, in windows too": [
        "test_lean.py::test_every_family_gives_the_logits_of_transformers",
        "test_families.py::test_a_family_reads_as_transformers_does_alone_and_in_batches",
        "test_families.py::test_planted_a_batch_without_its_window_is_refused",
    ],
    "families run or are refused, and what is not rolled back is seen": [
        "test_matrix.py::test_a_family_is_what_its_row_says",
        "test_rollback.py::test_planted_a_snapshot_that_is_written_over_is_refused",
    ],
    "a lossy loop is a no-go": ["test_run.py::test_a_lossy_loop_is_called_lossy"],
    "every prompt meets every arm": ["test_run.py::test_every_prompt_meets_every_arm_once"],
    "planted faults are named and healthy twins are not": [
        "test_planted.py::test_a_planted_fault_is_named_and_its_healthy_twin_is_not"
    ],
    "broken set-ups are named, poor drafts are not": [
        "test_doctor.py::test_a_wrong_rollback_of_the_target_is_named",
        "test_doctor.py::test_a_lossy_rule_is_named_greedy_and_sampling",
        "test_doctor.py::test_a_sound_set_up_is_not_accused_however_poor_the_draft",
    ],
    "a killed run goes on and loses nothing": [
        "test_kill.py::test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone",
        "test_kill.py::test_a_line_torn_at_any_byte_is_dropped_and_measured_again",
        "test_run.py::test_an_interrupted_run_continues_and_loses_nothing",
        "test_resume.py::test_a_full_or_broken_disk_loses_nothing_that_was_finished",
    ],
    "no text leaves": [
        "test_privacy.py::test_no_text_and_no_key_in_any_file",
        "test_privacy.py::test_no_text_and_no_key_in_anything_printed",
        "test_privacy.py::test_the_search_finds_what_is_planted",
    ],
    "nothing foreign runs": [
        "test_untrusted.py::test_weights_that_are_a_pickle_are_refused_in_one_line",
        "test_untrusted.py::test_code_of_a_model_does_not_run_unless_that_model_is_named",
    ],
    "intervals hold the truth and verdicts are as sure as they say": [
        "test_interval.py::test_the_interval_covers_the_truth_about_as_often_as_it_says",
        "test_interval.py::test_choosing_gamma_among_equals_does_not_flatter",
        "test_calibration.py::test_losing_the_pairs_would_show",
        "test_calibration.py::test_choosing_and_reporting_on_the_same_prompts_would_show",
        "test_verdict.py::test_the_probability_decides",
    ],
    "planted costs are predicted": ["test_cost_model.py::test_a_planted_cost_is_predicted_to_the_nanosecond"],
    "early stopping stops what is surely slower": [
        "test_looks.py::test_a_gamma_that_is_ruled_out_is_measured_no_further",
        "test_ruling.py::test_equals_are_hardly_ever_ruled_out",
    ],
    "a real llama.cpp server counts what we count": ["test_served_llamacpp.py::test_our_counts_are_the_servers_own"],
    "a draft is each engine's own setting": ["test_launch.py::test_one_draft_is_each_engines_own_setting"],
    "a server is predicted from its rounds": [
        "test_synthetic.py::test_planted_rounds_come_back_though_the_last_ones_are_cut",
        "test_served_predictions.py::test_every_gamma_at_every_load_is_predicted_as_it_is_measured",
        "test_schedule.py::test_the_planted_schedule_and_its_gain_come_back",
    ],
    "faults of servers are named and lose nothing": [
        "test_serving.py::test_a_planted_truth_is_recovered",
        "test_serving.py::test_a_server_that_dies_loses_nothing",
        "test_launched.py::test_a_server_does_not_outlive_us",
    ],
    "bad input is one line": [
        "test_bad_inputs.py::test_prompts",
        "test_bad_runs.py::test_run_folders",
        "test_fuzz.py::test_rows_of_a_workload",
    ],
    "memory that runs out costs a prompt": ["test_memory.py::test_a_prompt_that_does_not_fit_is_left_out_of_every_arm"],
    "imports point down and help is light": [
        "test_imports.py::test_imports_point_down",
        "test_imports.py::test_help_and_flag_errors_are_light",
    ],
    "kept briefs are what is written today": [
        "test_kept.py::test_a_kept_brief_is_what_the_code_writes",
        "test_kept.py::test_every_kept_file_is_what_is_written_today",
    ],
    "pages and contract are those of the code": [
        "test_docs.py::test_the_contract_has_the_keys_of_the_code_and_says_what_can_be_null",
        "test_reference.py::test_every_generated_file_is_what_the_code_says_now",
        "test_cli.py::test_sweep_json_is_one_object_with_the_contract_keys",
    ],
}


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> tuple[set[str], set[str]]:
    """Names of all tests, and of those that `make test` leaves out."""
    names, full = request.config.stash[ALL], request.config.stash[FULL]
    files = {name.partition("::")[0] for name in names}
    if len(files) < len(list(Path(__file__).parent.glob("test_*.py"))) / 2:
        pytest.skip("looks at all tests, and few files were named")
    return names, full


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_has_a_quick_test(claim: str, collected: tuple[set[str], set[str]]) -> None:
    names, full = collected
    tests = {f"tests/{name}" for name in CLAIMS[claim]}
    assert tests - names == set(), "renamed or gone"
    assert tests & full == set(), "left to make test-all"


def test_most_tests_are_quick(collected: tuple[set[str], set[str]]) -> None:
    names, full = collected
    assert 0 < len(full) < len(names) / 5
