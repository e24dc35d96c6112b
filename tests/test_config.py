"""Configuration: what is accepted, and the one line that says what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from specbench.config import RunConfig, load_config
from specbench.errors import ConfigError
from specbench.kinds import parse_gammas

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "gammas"),
    [
        ("1..8", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("1..8..2", (1, 3, 5, 7)),
        ("1,2,4", (1, 2, 4)),
        ("4,1,2..3", (1, 2, 3, 4)),
        (5, (5,)),
        ([1, 4], (1, 4)),
        ("64", (64,)),
    ],
)
def test_gamma_ranges(text, gammas):
    assert parse_gammas(text) == gammas


@pytest.mark.parametrize("text", ["0", "100", "8..1", "1..8..0", "1..2..3..4", "x", "", "1,,2", "-1", "1.5", "0..4"])
def test_bad_gamma_ranges(text):
    with pytest.raises(ConfigError, match="`gamma`"):
        load_config(None, {"gamma": text})


def bad(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    line = caught.value.line()
    assert "\n" not in line
    assert str(path) in line
    return line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gama: 4", "Unknown key `gama` ({path}). Did you mean `gamma`?"),
        ("policy: {min_speed: 2}", "Unknown key `min_speed` ({path}, policy). Did you mean `min_speedup`?"),
        ("policy: 3", "`policy` must be a mapping of keys to values ({path}). Indent its keys below it."),
        ("- a\n- b", "A configuration is a mapping of keys to values ({path}). Write `key: value`."),
        ("a: b: c", "Not readable as YAML: mapping values are not allowed here ({path}, line 1). Mend that line."),
        (
            "dtype: float23",
            "`dtype`: 'float23' is none of auto, float32, bfloat16, float16; did you mean 'float32'? ({path}).",
        ),
        ("temperature: -1", "`temperature`: -1 is not a number from 0 to 100 ({path})."),
        ("temperature: .nan", "`temperature`: nan is not a number from 0 to 100 ({path})."),
        ("limit: many", "`limit`: 'many' is not a whole number from 1 to 10000000 ({path})."),
        ("limit: true", "`limit`: True is not a whole number from 1 to 10000000 ({path})."),
        ("batch_size: 0", "`batch_size`: 0 is not a whole number from 1 to 1024 ({path})."),
        (
            "name: ../../etc",
            "`name`: '../../etc' cannot be part of a folder name; use letters, digits, '-' and '_' ({path}).",
        ),
        ("draft: []", "`draft`: at least one draft is needed ({path})."),
        ("draft: [a, a]", "The same draft is named twice ({path}). Name each draft once."),
        ("keep_text: 'yes'", "`keep_text`: 'yes' is not true or false ({path})."),
        ("top_p: 0", "`top_p`: 0 is not a number above 0 to 1 ({path})."),
        ("x: !!python/object/apply:os.system ['true']", "Not readable as YAML: could not determine a constructor"),
    ],
)
def test_bad_files_get_one_line(tmp_path, text, says):
    assert bad(tmp_path, text).startswith(says.replace("{path}", str(tmp_path / "bad.yaml")))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="No such configuration file"):
        load_config(tmp_path / "nowhere.yaml", {})


def test_a_path_that_is_too_long_for_a_file(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read the configuration: File name too long"):
        load_config(tmp_path / ("a" * 300), {})


def test_flags_override_the_file_and_none_does_not(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("gamma: 1..3\ntemperature: 0.5\npolicy: {min_speedup: 1.5, confidence: 0.9}\n")
    config = load_config(path, {"temperature": 0.0, "gamma": None, "min_speedup": 1.2})
    assert config.gamma == (1, 2, 3)
    assert config.temperature == 0.0
    assert (config.policy.min_speedup, config.policy.confidence) == (1.2, 0.9)


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "e.yaml").write_text("")
    assert load_config(tmp_path / "e.yaml", {}) == RunConfig()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path):
    config = load_config(path, {})
    assert config.draft
    assert config.gamma


def test_the_default_file_names_every_key_with_a_comment():
    path = ROOT / "configs" / "default.yaml"
    values = yaml.safe_load(path.read_text())
    assert list(values) and set(values) == set(RunConfig().as_dict())
    assert set(values["policy"]) == set(RunConfig().as_dict()["policy"])
    uncommented = [
        line for line in path.read_text().splitlines() if line.strip() and "#" not in line and line != "policy:"
    ]
    assert uncommented == []


def test_what_is_measured_decides_the_fingerprint_and_where_it_goes_does_not():
    one = load_config(None, {"out": "a", "name": "x", "min_speedup": 2.0})
    two = load_config(None, {"out": "b", "name": "y"})
    assert one.fingerprint() == two.fingerprint()
    assert load_config(None, {"seed": 1}).fingerprint() != one.fingerprint()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("45", 45), (12.5, 12.5), ("2h", 7200)]
)
def test_a_length_of_time_is_written_as_one_says_it(text, seconds):
    assert load_config(None, {"time_budget": text}).time_budget_s == seconds


@pytest.mark.parametrize("text", ["", "m", "10 minutes", "0s", "-5", "1e99", "nan", True])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ConfigError, match="no length of time; write 90s, 10m or 1h30m"):
        load_config(None, {"time_budget_s": text})
