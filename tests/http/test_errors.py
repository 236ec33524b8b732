"""What a client's mistakes are answered with: status, and OpenAI's error object with all four members,
`param` naming the field and `code` a string or null. Never a 5xx."""
import openai
import pytest

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def check(reply, status, param, code):
    assert reply.status == status, reply.text
    error = reply.error
    assert {"message", "type", "param", "code"} <= set(error), error
    assert isinstance(error["message"], str) and error["message"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code), error
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]


BAD_CHAT_FIELDS = [
    ("temperature", 9, "decimal_above_max_value"), ("temperature", -1, "decimal_below_min_value"),
    ("temperature", "hot", "invalid_type"), ("top_p", 1.5, "decimal_above_max_value"),
    ("top_k", -2, "integer_below_min_value"), ("top_k", 1.5, "invalid_type"),
    ("min_p", 2, "decimal_above_max_value"), ("n", 0, "integer_below_min_value"),
    ("n", 129, "integer_above_max_value"), ("n", "2", "invalid_type"),
    ("max_tokens", -5, "integer_below_min_value"), ("max_tokens", 0, "integer_below_min_value"),
    ("max_tokens", 1e30, "integer_above_max_value"), ("max_tokens", "8", "invalid_type"),
    ("frequency_penalty", 3, "decimal_above_max_value"),
    ("presence_penalty", -3, "decimal_below_min_value"),
    ("repeat_penalty", 0, "decimal_below_min_value"), ("seed", 1.5, "invalid_type"),
    ("seed", 1e300, "integer_above_max_value"), ("seed", "x", "invalid_type"),
    ("stop", ["a"] * 9, "array_above_max_length"), ("stop", [1], "invalid_type"),
    ("stop", "", "invalid_value"), ("stream", "yes", "invalid_type"),
    ("stream_options", {"include_usage": True}, "invalid_value"),
    ("logit_bias", {"x": 1}, "invalid_value"), ("logit_bias", {"1": 101}, "invalid_value"),
    ("logit_bias", {"999999999": 1}, "invalid_value"), ("logit_bias", [], "invalid_type"),
    ("top_logprobs", 2, "invalid_value"), ("logprobs", 1, "invalid_type"),
    ("messages", [], "empty_array"), ("messages", "hi", "invalid_type"),
    ("messages", {}, "invalid_type"), ("model", 5, "invalid_type"),
    ("overfill", "full", "invalid_type"),
    ("tools", [{"type": "function", "function": {"name": "f"}}], "unsupported_parameter"),
    ("tool_choice", "required", "unsupported_parameter"),
    ("functions", [{"name": "f"}], "unsupported_parameter"),
    ("response_format", {"type": "json_object"}, "unsupported_parameter"),
    ("response_format", {"type": "json_schema", "json_schema": {}}, "unsupported_parameter"),
    ("grammar", "root ::= x", "unsupported_parameter"),
    ("audio", {"voice": "x"}, "unsupported_parameter"),
    ("modalities", ["text", "audio"], "unsupported_parameter"),
    ("mirostat", 2, "unsupported_parameter"), ("mirostat", "0", "unsupported_parameter"), ("typical_p", 0.5, "unsupported_parameter"),
    ("guided_json", {"type": "object"}, "unsupported_parameter"),
    ("use_beam_search", True, "unsupported_parameter"),
]


@pytest.mark.parametrize("field,value,code", BAD_CHAT_FIELDS,
                         ids=[f"{f}={v!r}"[:40] for f, v, _ in BAD_CHAT_FIELDS])
def test_chat_field(server, field, value, code):
    check(server.post(CHAT, server.chat(**{field: value})), 400, field, code)


@pytest.mark.parametrize("messages,param,code", [
    ([{"content": "x"}], "messages[0].role", "missing_required_parameter"),
    ([{"role": 5, "content": "x"}], "messages[0].role", "invalid_type"),
    ([{"role": "alien", "content": "x"}], "messages[0].role", "invalid_value"),
    ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
    ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": 7}], "messages[0].content", "invalid_type"),
    ([{"role": "user", "content": []}], "messages[0].content", "empty_array"),
    ([{"role": "user", "content": "x"}, "y"], "messages[1]", "invalid_type"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
     "messages[0].content[0]", "unsupported_parameter"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]",
     "missing_required_parameter"),
    ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls",
     "unsupported_parameter"),
])
def test_message(server, messages, param, code):
    check(server.post(CHAT, server.chat(messages=messages)), 400, param, code)


@pytest.mark.parametrize("field,value,param,code", [
    ("prompt", [], "prompt", "empty_array"), ("prompt", {}, "prompt", "invalid_type"),
    ("prompt", 5, "prompt", "invalid_type"), ("prompt", None, "prompt", "missing_required_parameter"),
    ("prompt", [[]], "prompt[0]", "empty_array"), ("prompt", ["a", 5], "prompt[1]", "invalid_type"),
    ("prompt", [1, "a"], "prompt", "invalid_type"), ("prompt", [-1], "prompt", "integer_below_min_value"),
    ("prompt", [10 ** 9], "prompt", "invalid_value"), ("prompt", [1.5], "prompt", "invalid_type"),
    ("prompt", ["a"] * 2000, "prompt", "array_above_max_length"),
    ("logprobs", 6, "logprobs", "integer_above_max_value"),
    ("best_of", 2, "best_of", "unsupported_parameter"),
    ("suffix", "x", "suffix", "unsupported_parameter"),
    ("max_tokens", -1, "max_tokens", "integer_below_min_value"),
    ("overfill", {"decode": "full", "every": 4}, "overfill.every", "invalid_value"),
    ("overfill", {"decode": "verify", "every": 0}, "overfill.every", "integer_below_min_value"),
    ("overfill", {"decode": "verify", "every": 257}, "overfill.every", "integer_above_max_value"),
    ("overfill", {"switch_after": 4}, "overfill.switch_after", "unsupported_parameter"),
    ("priority", 1.5, "priority", "invalid_type"), ("cache_prompt", 1, "cache_prompt", "invalid_type"),
    ("overfill", {"decode": "magic"}, "overfill.decode", "invalid_value"),
])
def test_completion_field(server, field, value, param, code):
    check(server.post(COMPLETIONS, server.completion(**{field: value})), 400, param, code)


def test_model_missing(server):
    body = server.chat()
    del body["model"]
    reply = server.post(CHAT, body)
    check(reply, 400, None, None)
    assert reply.error["message"] == "you must provide a model parameter"


def test_model_unknown(server):
    reply = server.post(CHAT, server.chat(model="nobody"))
    check(reply, 404, "model", "model_not_found")
    check(server.get("/v1/models/nobody"), 404, "model", "model_not_found")
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().chat.completions.create(model="nobody", messages=server.chat()["messages"])
    assert caught.value.code == "model_not_found" and caught.value.request_id


def test_messages_missing(server):
    check(server.post(CHAT, {"model": server.model}), 400, "messages", "missing_required_parameter")


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_longer_than_the_context(server, stream):
    context = server.get("/v1/models").json["data"][0]["max_model_len"]
    ids = server.post("/tokenize", {"content": "ab"}).json["tokens"][:1]
    reply = server.post(COMPLETIONS, server.completion(ids * (context + 5), stream=stream))
    check(reply, 400, "prompt", "context_length_exceeded")
    assert reply.error["n_prompt_tokens"] == context + 5 and reply.error["n_ctx"] == context
    reply = server.post(CHAT, server.chat("ab cd " * context, stream=stream))
    check(reply, 400, "messages", "context_length_exceeded")
    assert reply.error["n_prompt_tokens"] > context


def test_prompt_and_answer_longer_than_the_context(server):
    context = server.get("/v1/models").json["data"][0]["max_model_len"]
    reply = server.post(CHAT, server.chat(max_tokens=context))
    check(reply, 400, "messages", "context_length_exceeded")


@pytest.mark.parametrize("body", [
    "", "{", "nonsense", "[]", "5", '"x"', '{"model":}', '{"a":1}x', "{'a':1}", '{"a":01}',
    '{"a":"\\u0000"}', '{"a":"\\ud800"}', '{"a":"\n"}', '{"a":nan}', '{"a":1,}', '[1,2', '{"a"',
    b'{"a":"\xff"}', b'{"a":"\xc0\x80"}', b"\x00", '{"a":' + "1" * 100 + "}",
    "[" * 200000, '{"a":' * 100000, "[" * 65 + "]" * 65,
], ids=lambda b: repr(b)[:24])
def test_body_that_is_not_a_request(server, body):
    for path in (CHAT, COMPLETIONS, "/tokenize"):
        check(server.post(path, body), 400, None, None)


def test_too_many_values(server):
    reply = server.post(COMPLETIONS, '{"prompt":[' + "1," * 1000001 + "1]}")
    check(reply, 400, None, None)


def test_unknown_field_is_taken_and_logged(server):
    assert server.post(CHAT, server.chat(some_new_field=1)).status == 200
    assert "some_new_field" in server.log()


def test_client_cannot_write_lines_of_the_log(server):
    server.get("/%0aforged%20by%20path")
    server.post(CHAT, server.chat(**{"field\nforged-by-field": 1}))
    server.wait_until(lambda: "forged-by-field" in server.log())
    lines = server.log().splitlines()
    assert any("/?forged by path" in line for line in lines)
    assert not [line for line in lines if line.startswith("forged")]


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/nothing", 404), ("POST", "/v1/nothing", 404), ("GET", "/v1/models/", 404),
    ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("PUT", COMPLETIONS, 405),
    ("POST", "/health", 405), ("PATCH", "/metrics", 405),
])
def test_route(server, method, path, status):
    reply = server.request(method, path)
    check(reply, status, None, {404: "unknown_url", 405: "method_not_supported"}[status])
    assert status == 404 or reply.headers["allow"]


def test_head_and_options(server):
    head = server.request("HEAD", "/v1/models")
    assert head.status == 200 and head.text == "" and int(head.headers["content-length"]) > 0
    options = server.request("OPTIONS", CHAT)
    assert options.status == 204 and options.headers["allow"] == "POST, OPTIONS"


def test_request_id(server):
    assert server.get("/health", headers={"x-request-id": "my-id.7"}).headers["x-request-id"] == "my-id.7"
    for bad in ("x" * 65, "a b", "a\tb", "<script>"):
        sent = server.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert sent.startswith("req_") and bad not in sent
    assert (server.get("/health").headers["x-request-id"]
            != server.get("/health").headers["x-request-id"])


def test_typed_errors_of_the_client(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**server.chat(temperature=5))
    assert caught.value.param == "temperature"
    assert caught.value.code == "decimal_above_max_value"
