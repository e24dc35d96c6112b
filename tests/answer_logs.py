"""One small sample of every source of recorded answers, hand-made after its documentation or its code.

Every text holds a canary, so that what a reader lets out can be found. `ASKED` is how often each sample answers it.
"""

from __future__ import annotations

import json

QUESTION, ANSWER, SYSTEM = "xylophone-canary: why?", "ambidextrous because.", "Mind the marzipan."

_ASK = {"role": "user", "content": QUESTION}
_SAY = {"role": "assistant", "content": ANSWER}
_BODY = {
    "model": "m-1",
    "messages": [{"role": "system", "content": SYSTEM}, _ASK],
    "temperature": 0.5,
    "max_tokens": 64,
}
_CHOICE = {"index": 0, "message": _SAY, "finish_reason": "stop"}
_RESPONSE = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m-1", "choices": [_CHOICE]}
_CHUNKS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ANSWER[:5]}}], "model": "m-1"},
    {"choices": [{"index": 0, "delta": {"content": ANSWER[5:]}, "finish_reason": "length"}]},
    {"choices": [], "usage": {"completion_tokens": 2}},
]


def lines(*rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


def _lc(kind, content):
    return {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", kind],
        "kwargs": {"content": content},
    }


_OBSERVATION = {
    "id": "o-1",
    "traceId": "t-1",
    "sessionId": "s-1",
    "type": "GENERATION",
    "model": "m-1",
    "modelParameters": {"temperature": 0.5, "max_tokens": 64},
    "input": [{"role": "system", "content": SYSTEM}, _ASK],
    "output": _SAY,
}
_RUN = {
    "id": "r-1",
    "run_type": "llm",
    "trace_id": "t-1",
    "session_id": "a project",
    "extra": {"invocation_params": {"model": "m-1", "temperature": 0.5, "max_tokens": 64}},
    "inputs": {"messages": [[_lc("SystemMessage", SYSTEM), _lc("HumanMessage", QUESTION)]]},
    "outputs": {
        "generations": [
            [{"text": ANSWER, "generation_info": {"finish_reason": "stop"}, "message": _lc("AIMessage", ANSWER)}]
        ]
    },
}
_GUIDE = {
    "type_": "generative_request_stats",
    "request_id": "g-1",
    "request_args": json.dumps({"method": "POST", "body": {"messages": [_ASK], "max_completion_tokens": 64}}),
    "output": ANSWER,
    "reasoning_output": None,
    "tool_calls": None,
}
_GUIDE_OF_OLD = {
    "type_": "generative_request_stats",
    "prompt": QUESTION,
    "request_args": {"max_tokens": 64},
    "output": ANSWER,
}
_STREAMED = [{"perf_ns": n, "packets": [{"name": "data", "value": json.dumps(c)}]} for n, c in enumerate(_CHUNKS)]
_STREAMED += [{"perf_ns": 9, "packets": [{"name": "data", "value": "[DONE]"}]}]

_PARAMS = "SamplingParams(n=1, temperature=0.5, top_p=1.0, max_tokens=64, stop=[])"
_AT = "(APIServer pid=9) INFO 11-23 10:45:21"
VLLM = "\n".join(
    (
        f"{_AT} [loggers.py:335] Engine 000: Running: 1 reqs",
        f"{_AT} [request_logger.py:53] Request chatcmpl-a details: prompt: {QUESTION!r}, "
        "prompt_token_ids: [5, 6, 7], prompt_embeds shape: None.",
        f"{_AT} [request_logger.py:63] Received request chatcmpl-a: params: {_PARAMS}, lora_request: None.",
        f"{_AT} [logger.py:39] Received request cmpl-b-0: prompt: {QUESTION!r}, params: {_PARAMS}, "
        "prompt_token_ids: None, lora_request: None.",
        f"{_AT} [logger.py:71] Generated response cmpl-b-0 (streaming delta): output: {ANSWER[:5]!r}, "
        "output_token_ids: [8], finish_reason: None",
        f"{_AT} [request_logger.py:98] Generated response chatcmpl-a: output: {ANSWER!r}, "
        "output_token_ids: [8, 9], finish_reason: stop",
        f"{_AT} [logger.py:71] Generated response cmpl-b-0 (streaming delta): output: {ANSWER[5:]!r}, "
        "output_token_ids: [9, 3], finish_reason: length",
        f"{_AT} [logger.py:71] Generated response cmpl-b-0 (streaming complete): output: {ANSWER!r}, "
        "output_token_ids: None, finish_reason: streaming_complete",
        f"{_AT} [logger.py:71] Generated response chatcmpl-z: output: {ANSWER!r}, output_token_ids: [8], "
        "finish_reason: stop",
        "",
    )
)

# By name: the file's name, what stands in it, and how many answers that is.
SAMPLES = {
    "chat rows": ("a.jsonl", lines({"id": 1, "messages": [_ASK, _SAY, _ASK, _SAY]}, {"messages": [_ASK]}), 2),
    "ShareGPT": (
        "a.json",
        json.dumps([{"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]}]),
        1,
    ),
    "Alpaca": ("a.jsonl", lines({"instruction": QUESTION, "input": "", "output": ANSWER}), 1),
    "OpenAI log": ("a.jsonl", lines({"request": _BODY, "response": _RESPONSE, "time": 1}), 1),
    "OpenAI log, flat": ("a.jsonl", lines({"messages": [_ASK], "response": _RESPONSE, "latency": 2.0}), 1),
    "OpenAI completions": (
        "a.jsonl",
        lines(
            {"request": {"prompt": QUESTION}, "response": {"choices": [{"text": ANSWER, "finish_reason": "length"}]}}
        ),
        1,
    ),
    "vLLM log": ("vllm.log", VLLM, 2),
    "aiperf": (
        "profile_export_raw.jsonl",
        lines(
            {"metadata": {"conversation_id": "c"}, "payload": _BODY, "responses": [{"text": json.dumps(_RESPONSE)}]},
            {"metadata": {"conversation_id": "c"}, "payload": _BODY, "responses": _STREAMED},
            {"metadata": {}, "payload": _BODY, "responses": [], "error": {"code": 499}},
        ),
        2,
    ),
    "guidellm": (
        "benchmarks.json",
        json.dumps({"benchmarks": [{"requests": {"successful": [_GUIDE, _GUIDE_OF_OLD], "errored": []}}]}),
        2,
    ),
    "Langfuse": (
        "a.jsonl",
        lines(
            _OBSERVATION,
            _OBSERVATION | {"input": json.dumps(_OBSERVATION["input"]), "output": ANSWER},
            _OBSERVATION | {"type": "SPAN"},
        ),
        2,
    ),
    "LangSmith": (
        "a.jsonl",
        lines(
            _RUN,
            _RUN | {"inputs": json.dumps({"messages": [_ASK]}), "outputs": json.dumps({"choices": [_CHOICE]})},
            _RUN | {"run_type": "chain"},
        ),
        2,
    ),
    "SPEED-Bench": (
        "specbench_responses.jsonl",
        lines({"question_id": 7, "category": "code", "turns": [QUESTION] * 2, "choices": [{"turns": [ANSWER] * 2}]}),
        2,
    ),
}

# Prompts in one file, answers in another.
JOINED = {
    "OpenAI batch": (
        lines({"custom_id": "b-1", "method": "POST", "url": "/v1/chat/completions", "body": _BODY}),
        lines({"id": "x", "custom_id": "b-1", "response": {"status_code": 200, "body": _RESPONSE}, "error": None}),
        1,
    ),
    "Spec-Bench": (
        lines({"question_id": 81, "category": "writing", "turns": [QUESTION, QUESTION]}),
        lines({"question_id": 81, "model_id": "m-1", "choices": [{"index": 0, "turns": [ANSWER, ANSWER]}]}),
        2,
    ),
}

# What holds no answers, and a part of what is said of it.
REFUSED = {
    "prompts alone": ("a.jsonl", lines({"prompt": QUESTION}), "no answer known by the columns"),
    "plain text": ("a.txt", QUESTION, "a prompt without an answer"),
    "a chat that nobody answered": ("a.jsonl", lines({"messages": [_ASK]}), "no turn of an assistant"),
    "aiperf's metrics": (
        "a.jsonl",
        lines({"metadata": {"note": QUESTION}, "metrics": {"x": 1}}),
        "aiperf's profile_export.jsonl holds no",
    ),
    "a batch input": ("a.jsonl", lines({"custom_id": "b", "body": _BODY}), "a batch input holds prompts without"),
    "a batch output": (
        "a.jsonl",
        lines({"custom_id": "b", "response": {"body": _RESPONSE}}),
        "a batch output holds answers without",
    ),
    "Spec-Bench's answers": (
        "a.jsonl",
        lines({"question_id": 1, "choices": [{"turns": [ANSWER]}]}),
        "Spec-Bench's answers come without",
    ),
    "a log of another program": ("a.log", f"GET / 200 {QUESTION}\n", "no request of vLLM in the log"),
}
