"""Servers as people have them: addresses with /v1, several models at one, refusals, other fields, no usage."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from conftest import CANARY
from fake_openai import FakeOpenAI
from test_cli import call
from test_run import FakeObserver
from test_serving import codes, counted

from specbench.backends.server import asking
from specbench.backends.server.adapter import problem_of
from specbench.backends.server.client import split_address
from specbench.config import SETTINGS, load_config
from specbench.errors import ConfigError, EngineError
from specbench.run.session import run
from specbench.store import find_runs, read_run


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


def measured(lab, out, alone, drafting, *, mode="auto", suffix="", **flags):
    base = {
        "target": "served",
        "draft": ["served"],
        "server": alone.url + suffix,
        "spec_server": drafting.url + suffix,
        "workload": str(lab.workload),
        "gamma": "3",
        "max_new_tokens": 12,
        "limit": 4,
        "out": str(out),
    }
    config = load_config(None, base | flags)
    return read_run(run(config, "measure", config.gamma, FakeObserver(), mode=mode))


def refusing(status, error):
    return lambda body: (status, error)


# Addresses.


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        (" http://h:8000//v1// ", "http://h:8000"),
        ("http://h/openai/v1", "http://h/openai"),
        ("https://h/api/v1/", "https://h/api"),
        ("http://h/v1/chat/completions", "http://h"),
        ("http://h/api/v1/models", "http://h/api"),
        ("http://h/v1/v1", "http://h/v1"),
        ("http://v1/v1", "http://v1"),
        ("http://v1/", "http://v1"),
        ("http://h/v1/openai", "http://h/v1/openai"),
        ("http://h/env1", "http://h/env1"),
    ],
)
def test_an_address_is_kept_without_what_requests_add(given, kept):
    assert SETTINGS["server"].read(given) == kept
    assert load_config(None, {"server": given, "engine": "openai"}).server == kept
    assert split_address(kept) == (kept, "")


def test_a_whole_address_that_is_not_below_v1_is_asked_as_it_is():
    assert SETTINGS["server"].read("http://h/api/chat/completions/") == "http://h/api/chat/completions"
    assert split_address("http://h/api/chat/completions") == ("http://h/api", "/v1")


@pytest.mark.parametrize("value", ["", " ", 5, "http://h\n"])
def test_what_is_no_address_is_refused(value):
    with pytest.raises(ConfigError, match="`server`"):
        load_config(None, {"server": value})


@pytest.mark.full
@pytest.mark.parametrize(("root", "suffix"), [("", "/v1"), ("/api", "/api/v1/"), ("", "/v1/chat/completions")])
def test_every_page_and_request_is_below_the_address(lab, tmp_path, root, suffix):
    with FakeOpenAI(root=root) as alone, FakeOpenAI(root=root) as drafting:
        stored = measured(lab, tmp_path, alone, drafting, suffix=suffix)
    assert len(counted(stored)) == 12
    assert stored.run.config.server == alone.url + root
    assert {path for path in alone.paths if "v1" in path} == {f"{root}/v1/models", f"{root}/v1/chat/completions"}


def test_an_address_without_v1_is_asked_at_the_whole_of_it(lab, tmp_path):
    where = {"root": "/api", "chat": "/chat/completions"}
    with FakeOpenAI(**where) as alone, FakeOpenAI(**where) as drafting:
        stored = measured(lab, tmp_path, alone, drafting, suffix="/api/chat/completions")
    assert len(counted(stored)) == 12


def test_a_wrong_address_is_named_with_its_path(lab, tmp_path):
    with (
        FakeOpenAI() as alone,
        FakeOpenAI() as drafting,
        pytest.raises(
            EngineError, match=r"does not take requests at /v1/chat/completions: HTTP status 404 \(http.*/v2"
        ),
    ):
        measured(lab, tmp_path, alone, drafting, suffix="/v2")


# Names of models.

SEVERAL = ("qwen3:8b", "gemma3:4b", "nomic-embed-text:latest")


def test_several_models_are_listed_before_anything_is_asked(lab, tmp_path):
    with (
        FakeOpenAI(names=SEVERAL) as alone,
        FakeOpenAI(names=SEVERAL) as drafting,
        pytest.raises(ConfigError, match=r"lists 3 models.*'qwen3:8b', 'gemma3:4b'.*--served-model-name") as error,
    ):
        measured(lab, tmp_path, alone, drafting)
    assert error.value.exit_code == 2
    assert (alone.seen, find_runs(tmp_path)) == ([], [])


@pytest.mark.parametrize("engine", ["openai", "vllm", "sglang", "llamacpp"])
def test_every_engine_is_refused_alike(lab, tmp_path, engine):
    with (
        FakeOpenAI(names=SEVERAL) as alone,
        FakeOpenAI(names=SEVERAL) as drafting,
        pytest.raises(ConfigError, match="lists 3 models"),
    ):
        measured(lab, tmp_path, alone, drafting, engine=engine)


@pytest.mark.full
@pytest.mark.parametrize("flags", [{"served_model_name": "gemma3:4b"}, {"target": "gemma3:4b"}])
def test_a_named_model_is_asked_for(lab, tmp_path, flags):
    with FakeOpenAI(names=SEVERAL) as alone, FakeOpenAI(names=SEVERAL) as drafting:
        stored = measured(lab, tmp_path, alone, drafting, **flags)
    assert {body["model"] for body in (*alone.seen, *drafting.seen)} == {"gemma3:4b"}
    assert {one.model for one in stored.run.served.settings.values()} == {"gemma3:4b"}


@pytest.mark.full
def test_the_only_model_needs_no_name_and_a_server_without_a_list_gets_the_one_given(lab, tmp_path):
    with FakeOpenAI() as alone, FakeOpenAI(names=()) as drafting:
        measured(lab, tmp_path / "one", alone, drafting)
        assert {body.get("model") for body in alone.seen} == {"m"}
        assert {body.get("model") for body in drafting.seen} == {None}
        drafting.seen.clear()
        measured(lab, tmp_path / "two", alone, drafting, served_model_name="m")
        assert {body.get("model") for body in drafting.seen} == {"m"}


def test_a_name_that_is_not_listed_is_refused_with_those_that_are(lab, tmp_path):
    many = tuple(f"m{number}" for number in range(40))
    with (
        FakeOpenAI(names=many) as alone,
        FakeOpenAI(names=many) as drafting,
        pytest.raises(ConfigError, match=r"does not list a model 'm39x', but 'm39', 'm0'.* and 30 more"),
    ):
        measured(lab, tmp_path, alone, drafting, served_model_name="m39x")
    assert find_runs(tmp_path) == []


def test_a_name_may_be_one_of_a_listed_kind(lab, tmp_path):
    with FakeOpenAI(names=("openai/*", "x")) as alone, FakeOpenAI(names=("openai/*", "x")) as drafting:
        measured(lab, tmp_path, alone, drafting, served_model_name="openai/o9")
    assert {body["model"] for body in alone.seen} == {"openai/o9"}


def test_names_are_shortened_and_cleaned(lab, tmp_path):
    strange = ("\x1b[31mred", "long" * 100)
    with (
        FakeOpenAI(names=strange) as alone,
        FakeOpenAI(names=strange) as drafting,
        pytest.raises(ConfigError, match="lists 2 models") as error,
    ):
        measured(lab, tmp_path, alone, drafting)
    assert "\x1b" not in error.value.line()
    assert len(error.value.line()) < 400


@pytest.mark.full
def test_names_of_one_model_and_its_adapters_are_no_choice(lab, tmp_path):
    class Aliased(FakeOpenAI):
        def pages(self):
            rows = [{"id": "a", "root": "/m"}, {"id": "b", "root": "/m"}, {"id": "lora", "root": "/l", "parent": "a"}]
            return {"/v1/models": {"data": rows}}

    with Aliased() as alone, Aliased() as drafting:
        measured(lab, tmp_path / "first", alone, drafting)
        assert {body["model"] for body in alone.seen} == {"a"}
        alone.seen.clear()
        measured(lab, tmp_path / "adapter", alone, drafting, served_model_name="lora")
        assert {body["model"] for body in alone.seen} == {"lora"}


@pytest.mark.full
def test_two_names_at_one_address(lab, tmp_path):
    with FakeOpenAI(names=("big", "big-fast")) as both:
        stored = measured(lab, tmp_path, both, both, served_model_name="big,big-fast")
        with pytest.raises(ConfigError, match="One server is named both"):
            measured(lab, tmp_path, both, both, served_model_name="big")
        with pytest.raises(ConfigError, match=r"one block.*\(--time-budget\).*--limit, or servers at two addresses"):
            measured(lab, tmp_path, both, both, served_model_name="big,big-fast", time_budget_s=60)
    assert len(counted(stored)) == 12
    # What is loaded anew gets a warm-up of its own, and the arms do not take turns prompt by prompt.
    order = [body["model"] for body in both.seen]
    assert order.count("big-fast") == 2 + 1 + 4
    assert sum(one != other for one, other in pairwise(order)) <= 4


@pytest.mark.parametrize("value", ["", ",", "a,", "a,b,c", 5, "a\nb"])
def test_what_is_no_name_is_refused(value):
    with pytest.raises(ValueError, match="write a name"):
        SETTINGS["served_model_name"].read(value)
    assert SETTINGS["served_model_name"].read("a , b") == "a,b"


def test_a_name_without_a_server_is_refused():
    with pytest.raises(ConfigError, match="Only a server has names"):
        load_config(None, {"served_model_name": "m"})


# Refusals.

NO_MODEL = {"error": {"message": f"model is required for {CANARY}", "type": "api_error"}}


def test_every_request_refused_is_an_error_and_all_is_asked_again(lab, tmp_path):
    with FakeOpenAI(names=(), refuse=refusing(400, NO_MODEL)) as alone, FakeOpenAI(names=()) as drafting:
        with pytest.raises(EngineError, match=r"refuses every request: HTTP status 400 \(api_error\)") as error:
            measured(lab, tmp_path, alone, drafting)
        assert CANARY not in error.value.line()
        (folder,) = find_runs(tmp_path)
        before = read_run(folder)
        assert (before.status, before.run.workload.skipped) == ("failed", ())
        assert CANARY not in (folder / "run.json").read_text()
        alone.refuse = lambda body: None
        stored = measured(lab, tmp_path, alone, drafting)
    assert (stored.folder, stored.status, len(counted(stored))) == (folder, "finished", 12)


@pytest.mark.full
def test_every_prompt_refused_is_no_finished_run(lab, tmp_path):
    """As where all have what a server does not take, and a plain request is answered."""

    def refuse(body):
        return (422, {"detail": [{"type": "extra_forbidden"}]}) if CANARY in body["messages"][-1]["content"] else None

    with FakeOpenAI() as alone, FakeOpenAI(refuse=refuse) as drafting:
        with pytest.raises(EngineError, match=r"Not a single prompt .*HTTP status 422 \(extra_forbidden\)"):
            measured(lab, tmp_path, alone, drafting)
        (folder,) = find_runs(tmp_path)
        assert (read_run(folder).status, read_run(folder).run.workload.skipped) == ("failed", ())
        drafting.refuse = lambda body: None
        assert measured(lab, tmp_path, alone, drafting).status == "finished"


@pytest.mark.full
def test_a_run_of_two_prompts_that_only_fail_says_why(lab, tmp_path):
    broken = refusing(500, {"error": {"message": CANARY, "type": "InternalServerError"}})
    with (
        FakeOpenAI(refuse=broken) as alone,
        FakeOpenAI(refuse=broken) as drafting,
        pytest.raises(EngineError, match=r"HTTP status 500 \(InternalServerError\)"),
    ):
        measured(lab, tmp_path, alone, drafting, limit=1)
    assert read_run(find_runs(tmp_path)[0]).status != "finished"


def test_a_refused_first_prompt_leaves_the_others_a_warm_server(lab, tmp_path):
    first = {}

    def refuse(body):
        text = body["messages"][-1]["content"]
        return (400, {"error": {"code": "context_length_exceeded"}}) if text == first.setdefault("is", text) else None

    with FakeOpenAI(refuse=refuse) as alone, FakeOpenAI() as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 9
    assert [skipped.reason for skipped in stored.run.workload.skipped] == [
        "the server refuses it: HTTP status 400 (context_length_exceeded)"
    ]
    assert len([trial for trial in stored.trials if trial.warmup]) == 4


def test_a_model_that_the_server_does_not_have_is_named(lab, tmp_path):
    missing = refusing(404, {"error": {"message": CANARY, "type": "not_found_error", "code": "model_not_found"}})
    with (
        FakeOpenAI(refuse=missing) as alone,
        FakeOpenAI() as drafting,
        pytest.raises(EngineError, match=r"for the model 'm': HTTP status 404 \(not_found_error, model_not_found\)"),
    ):
        measured(lab, tmp_path, alone, drafting)


SENT = {"model": "m", "messages": [{"content": f"{CANARY} seed"}], "max_tokens": 5, "seed": 1, "stream_options": {}}


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ({"error": {"message": CANARY, "type": "invalid_request_error"}}, "HTTP status 400 (invalid_request_error)"),
        (
            {"error": {"param": "seed", "code": "unsupported_parameter", "type": None}},
            "HTTP status 400 (unsupported_parameter, field `seed`)",
        ),
        ({"error": {"param": "messages[0].content"}}, "HTTP status 400 (field `messages`)"),
        ({"error": {"message": "property 'seed' is unsupported"}}, "HTTP status 400 (field `seed`)"),
        ({"error": 'json: unknown field "stream_options"'}, "HTTP status 400 (field `stream_options`)"),
        ({"error": {"message": json.dumps(SENT)}}, "HTTP status 400"),
        (
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]},
            "HTTP status 400 (extra_forbidden, field `seed`)",
        ),
        ({"detail": "Not Found"}, "HTTP status 400"),
        (
            {"object": "error", "message": CANARY, "type": "BadRequestError", "param": None, "code": 400},
            "HTTP status 400 (BadRequestError)",
        ),
        ({"error": {"type": "None", "code": "400", "param": "None"}}, "HTTP status 400"),
        ({"error": {"type": CANARY, "code": f"a {CANARY}", "param": CANARY}}, "HTTP status 400"),
        ({"error": "too long", "error_type": "validation"}, "HTTP status 400 (validation)"),
        ([], "HTTP status 400"),
    ],
)
def test_of_an_error_its_type_code_and_our_own_field_are_told(page, says):
    assert str(problem_of(400, json.dumps(page), SENT)) == says


@pytest.mark.parametrize("page", ["", "<html>", "[" * 100_000, "null"])
def test_an_error_that_is_no_json_has_a_status(page):
    assert str(problem_of(502, page, SENT)) == "HTTP status 502"


@pytest.mark.full
def test_a_field_that_the_server_does_not_know_is_named(lab, tmp_path):
    def strict(body):
        extra = sorted(
            set(body) - {"model", "messages", "max_tokens", "temperature", "top_p", "stream", "stream_options"}
        )
        return (422, {"detail": [{"loc": ["body", extra[0]], "type": "extra_forbidden"}]}) if extra else None

    with FakeOpenAI(refuse=strict) as alone, FakeOpenAI(refuse=strict) as drafting:
        # A greedy text draws nothing, so that no seed is sent.
        assert measured(lab, tmp_path / "greedy", alone, drafting).status == "finished"
        with pytest.raises(EngineError, match=r"HTTP status 422 \(extra_forbidden, field `seed`\).*behind `seed`"):
            measured(lab, tmp_path / "drawn", alone, drafting, temperature=0.7)


# How long an answer may be.


def newer(body):
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    error = {"message": message, "type": "invalid_request_error", "code": "unsupported_parameter"}
    return (400, {"error": error}) if "max_tokens" in body else None


def test_a_server_that_wants_the_newer_field_gets_it(lab, tmp_path):
    with FakeOpenAI(refuse=newer) as alone, FakeOpenAI() as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 12
    assert [body for body in alone.seen[1:] if "max_tokens" in body] == []
    assert {body["max_completion_tokens"] for body in alone.seen[-4:]} == {12}
    assert [body for body in drafting.seen if "max_completion_tokens" in body] == []
    fields = {arm: said.limit_field for arm, said in stored.run.served.settings.items()}
    assert fields == {"baseline": "max_completion_tokens", "served gamma 3": None}
    assert stored.run.workload.skipped == ()


def test_a_server_that_takes_neither_is_asked_in_the_usual_one(lab, tmp_path):
    """vLLM names both fields where a prompt is too long."""
    too_long = {"message": "'max_tokens' or 'max_completion_tokens' is too large", "param": "max_tokens", "code": 400}
    first = {}

    def refuse(body):
        text = body["messages"][-1]["content"]
        return (400, {"error": too_long}) if text == first.setdefault("is", text) else None

    with FakeOpenAI(refuse=refuse) as alone, FakeOpenAI() as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 9
    assert sum("max_completion_tokens" in body for body in alone.seen) == 1


# What the answers lack.


def test_answers_without_usage_are_named_so(lab, tmp_path):
    with (
        FakeOpenAI(usage=False) as alone,
        FakeOpenAI(usage=False) as drafting,
        pytest.raises(EngineError, match=r"not as openai answers: no usage.completion_tokens, which we ask for"),
    ):
        measured(lab, tmp_path, alone, drafting)


def test_an_answer_that_is_not_streamed_is_named_so(lab, tmp_path):
    whole = refusing(200, {"choices": [{"message": {"content": CANARY}}]})
    with (
        FakeOpenAI(refuse=whole) as alone,
        FakeOpenAI() as drafting,
        pytest.raises(EngineError, match="the answer is not streamed"),
    ):
        measured(lab, tmp_path, alone, drafting)


def test_an_answer_in_one_piece_is_no_measurement(lab, tmp_path):
    """A gateway that gathers the stream, a server that sends a call of tools when it is complete."""
    piece = ({"content": " ".join("abcdefghijkl")},)
    with FakeOpenAI(deltas=piece) as alone, FakeOpenAI() as drafting:
        with pytest.raises(EngineError, match=r"Not a single prompt .*the server: its answer comes in one piece"):
            measured(lab, tmp_path, alone, drafting)
        alone.deltas = ()
        assert measured(lab, tmp_path, alone, drafting).status == "finished"


@pytest.mark.parametrize("named", [0, None])
def test_a_text_of_no_tokens_is_no_answer(lab, tmp_path, named):
    class Uncounted(FakeOpenAI):
        def answer(self, body):
            for event in super().answer(body):
                if "usage" in event:
                    event["usage"]["completion_tokens"] = named
                yield event

    with (
        Uncounted() as alone,
        FakeOpenAI() as drafting,
        pytest.raises(EngineError, match=r"not as openai answers: (no )?usage.completion_tokens"),
    ):
        measured(lab, tmp_path, alone, drafting)


def test_a_page_that_is_forbidden_is_a_page_that_is_not_there_for_who_has_a_key(lab, tmp_path, monkeypatch):
    with FakeOpenAI(key="k", missing=403) as alone, FakeOpenAI(key="k", missing=403) as drafting:
        with pytest.raises(EngineError, match="wants a key"):
            measured(lab, tmp_path, alone, drafting)
        monkeypatch.setenv("SPECBENCH_API_KEY", "wrong")
        with pytest.raises(EngineError, match="wants a key: HTTP status 401"):
            measured(lab, tmp_path, alone, drafting)
        monkeypatch.setenv("SPECBENCH_API_KEY", "k")
        assert measured(lab, tmp_path, alone, drafting).status == "finished"


def test_a_page_that_is_forbidden_wants_no_key_of_who_needs_none(lab, tmp_path):
    with FakeOpenAI(missing=403) as alone, FakeOpenAI(missing=403) as drafting:
        assert measured(lab, tmp_path, alone, drafting).status == "finished"


def test_a_server_that_still_loads_its_model_is_not_taken_for_another(lab, tmp_path):
    loading = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
    with FakeOpenAI(missing=503, missing_page=json.dumps(loading)) as alone, FakeOpenAI(missing=503) as drafting:
        with pytest.raises(EngineError, match=r"still loads its model: HTTP status 503 .*Wait"):
            measured(lab, tmp_path, alone, drafting)
        assert (alone.seen, find_runs(tmp_path)) == ([], [])
        alone.missing_page = "{}"
        assert measured(lab, tmp_path, alone, drafting).status == "finished"


def test_answers_that_call_tools_are_whole(lab, tmp_path):
    calls = (
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "call_7f", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Oslo"}'}}]},
    )
    other = (*calls[:2], {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Rome"}'}}]})
    with (
        FakeOpenAI(deltas=calls, finish="tool_calls") as alone,
        FakeOpenAI(deltas=other, finish="tool_calls") as drafting,
    ):
        stored = measured(lab, tmp_path, alone, drafting, keep_text=True)
    assert {trial.finish for trial in counted(stored)} == {"eos"}
    again = [trial.identical for trial in counted(stored) if trial.arm.kind == "baseline-again"]
    drafted = [trial.identical for trial in counted(stored) if trial.arm.kind == "speculative"]
    assert (set(again), set(drafted)) == ({True}, {False})
    assert {trial.output_text for trial in counted(stored)} == {'weather{"city": "Oslo"}', 'weather{"city": "Rome"}'}
    assert "failed-requests" not in codes(stored)


@pytest.mark.full
def test_one_line_on_the_command_line(lab, tmp_path):
    with FakeOpenAI(names=SEVERAL) as alone, FakeOpenAI(names=SEVERAL) as drafting:
        flags = ["--server", f"{alone.url}/v1", "--spec-server", f"{drafting.url}/v1", "--workload", lab.workload]
        result = call("measure", *flags, "--gamma", "3", "--out", tmp_path)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1
        named = ["--served-model-name", "qwen3:8b", "--max-new-tokens", "12", "--limit", "4"]
        assert call("measure", *flags, "--gamma", "3", "--out", tmp_path, *named).exit_code == 0
