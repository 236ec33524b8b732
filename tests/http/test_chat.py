"""/v1/chat/completions through the official Python client, and the stream's exact shape."""
import pytest

MESSAGES = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name three colours, with an é and a €."}]


def collect(stream):
    texts, finishes, usage = {}, {}, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in finishes
                finishes[choice.index] = choice.finish_reason
        usage = chunk.usage or usage
    return texts, finishes, usage


def test_whole_answer(client, server):
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=12,
                                            temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == server.model and answer.system_fingerprint.startswith("fp_")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.timings["predicted_n"] == answer.usage.completion_tokens


@pytest.mark.parametrize("fields", [
    {"temperature": 0}, {"temperature": 1, "seed": 7}, {"temperature": 0.7, "seed": 1, "n": 3},
    {"temperature": 0, "stop": ["e", "zz"]}, {"temperature": 1, "seed": 3, "top_p": 0.9,
                                              "presence_penalty": 0.5}])
def test_stream_text_equals_whole_text(client, server, fields):
    request = dict(model=server.model, messages=MESSAGES, max_tokens=24, **fields)
    whole = client.chat.completions.create(**request)
    texts, finishes, usage = collect(client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}))
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert finishes == {c.index: c.finish_reason for c in whole.choices}
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert len(whole.choices) == fields.get("n", 1)


def test_stream_shape(server):
    body = server.chat(temperature=0, stream_options={"include_usage": True})
    events, done = server.stream("/v1/chat/completions", body)
    assert done
    assert {(e["id"], e["created"], e["model"], e["system_fingerprint"], e["object"])
            for e in events} == {(events[0]["id"], events[0]["created"], server.model,
                                  events[0]["system_fingerprint"], "chat.completion.chunk")}
    first = events[0]["choices"][0]
    assert first["delta"]["role"] == "assistant" and first["delta"]["content"] == ""
    for event in events[:-1]:
        assert event["usage"] is None and len(event["choices"]) == 1
    for event in events[:-2]:
        assert event["choices"][0]["finish_reason"] is None
    assert events[-2]["choices"][0]["delta"] == {}
    assert events[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] >= 1


def test_stream_without_include_usage_has_none(server):
    events, done = server.stream("/v1/chat/completions", server.chat())
    assert done and all("usage" not in e for e in events)
    assert events[-1]["choices"][0]["finish_reason"]


def test_continuous_usage_counts_up(server):
    body = server.chat(temperature=0, stream_options={"include_usage": True,
                                                      "continuous_usage_stats": True})
    events, _ = server.stream("/v1/chat/completions", body)
    counts = [e["usage"]["completion_tokens"] for e in events]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] >= 1


def test_stream_headers(server):
    reply = server.post("/v1/chat/completions", server.chat(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"


def test_same_seed_same_text(client, server):
    texts = {client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=16,
                                            temperature=1.5, seed=99).choices[0].message.content
             for _ in range(3)}
    assert len(texts) == 1


def test_choices_differ(client, server):
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=24,
                                            temperature=2, seed=5, n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1


def test_max_tokens_one(client, server):
    for field in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(model=server.model, messages=MESSAGES,
                                                temperature=0, **{field: 1})
        assert answer.usage.completion_tokens == 1
        assert answer.choices[0].finish_reason == "length"


def test_stop_string_is_not_in_the_text(client, server):
    request = dict(model=server.model, messages=MESSAGES, max_tokens=24, temperature=0)
    text = client.chat.completions.create(**request).choices[0].message.content
    stop = text[len(text) // 2:][:2]
    cut = client.chat.completions.create(**request, stop=stop).choices[0]
    assert cut.message.content == text[:text.index(stop)] and cut.finish_reason == "stop"


def test_content_parts_are_joined(client, server):
    def tokens(content):
        return client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": content}], max_tokens=1,
        ).usage.prompt_tokens
    assert tokens([{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]) == tokens("ab\ncd")


@pytest.mark.parametrize("k", [None, 0, 2])
def test_logprobs(client, server, k):
    fields = {} if k is None else {"top_logprobs": k}
    answer = client.chat.completions.create(model=server.model, messages=MESSAGES, max_tokens=6,
                                            temperature=0, logprobs=True, **fields)
    content = answer.choices[0].logprobs.content
    assert 1 <= len(content) <= 6
    for item in content:
        assert item.logprob <= 0 and len(item.top_logprobs) == (k or 0)
        for top in item.top_logprobs:
            assert top.logprob <= 0 and isinstance(top.bytes, list)
    text = b"".join(bytes(item.bytes) for item in content).decode(errors="ignore")
    assert text.startswith(answer.choices[0].message.content[:3])


def test_streamed_logprobs_equal_whole(client, server):
    request = dict(model=server.model, messages=MESSAGES, max_tokens=6, temperature=0,
                   logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**request).choices[0].logprobs.content
    streamed = [item for chunk in client.chat.completions.create(**request, stream=True)
                for choice in chunk.choices if choice.logprobs for item in choice.logprobs.content]
    assert [(i.token, i.logprob) for i in streamed] == [(i.token, i.logprob) for i in whole]


def test_decode_mode_per_request(server):
    reply = server.post("/v1/chat/completions", server.chat(overfill={"decode": "full"}))
    assert reply.status == 200, reply.text


def test_null_means_default(server):
    body = server.chat(temperature=None, stop=None, n=None, seed=None, stream=None, tools=None,
                       logit_bias=None, stream_options=None, response_format=None)
    assert server.post("/v1/chat/completions", body).status == 200


def test_neutral_values_of_what_we_lack_are_fine(server):
    body = server.chat(tools=[], tool_choice="none", response_format={"type": "text"},
                       typical_p=1.0, mirostat=0, user="u", metadata={"a": "b"}, priority=0)
    assert server.post("/v1/chat/completions", body).status == 200


def test_logit_bias_forces_a_token(server):
    ids = server.post("/tokenize", {"content": "zz"}).json["tokens"]
    body = server.completion(temperature=0, logit_bias={str(ids[0]): 100}, max_tokens=2)
    reply = server.post("/v1/completions", body)
    assert reply.status == 200
    if server.kind == "real":
        piece = server.post("/detokenize", {"tokens": [ids[0]] * 2}).json["content"]
        assert reply.json["choices"][0]["text"] == piece
