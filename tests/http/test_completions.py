"""/v1/completions: prompts in every form, echo, legacy log-probabilities, and the tokenize routes."""
import pytest


def test_default_length_is_16(client, server):
    answer = client.completions.create(model=server.model, prompt="word " * 40, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_ids_and_text_give_the_same(client, server):
    ids = server.post("/tokenize", {"prompt": "One two three"}).json["tokens"]
    answers = [client.completions.create(model=server.model, prompt=prompt, max_tokens=8,
                                         temperature=0) for prompt in ("One two three", ids)]
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(client, server, stream):
    prompts = ["Alpha beta", "One two three", "xyz"]
    alone = [client.completions.create(model=server.model, prompt=p, max_tokens=8, temperature=0)
             for p in prompts]
    request = dict(model=server.model, prompt=prompts, max_tokens=8, temperature=0, n=2)
    if stream:
        texts, usage = {}, None
        for chunk in client.completions.create(**request, stream=True,
                                               stream_options={"include_usage": True}):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
            usage = chunk.usage or usage
        texts = [texts[i] for i in range(6)]
    else:
        answer = client.completions.create(**request)
        assert [c.index for c in answer.choices] == list(range(6))
        texts, usage = [c.text for c in answer.choices], answer.usage
    assert texts == [a.choices[0].text for a in alone for _ in range(2)]
    assert usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone)
    assert usage.completion_tokens == 2 * sum(a.usage.completion_tokens for a in alone)


def test_lists_of_ids(client, server):
    lists = [server.post("/tokenize", {"prompt": p}).json["tokens"] for p in ("One two", "three")]
    answer = client.completions.create(model=server.model, prompt=lists, max_tokens=2)
    assert len(answer.choices) == 2
    assert answer.usage.prompt_tokens == sum(map(len, lists))


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_first(client, server, stream):
    request = dict(model=server.model, prompt="One two three", max_tokens=4, temperature=0)
    plain = client.completions.create(**request).choices[0].text
    answer = client.completions.create(**request, echo=True, stream=stream)
    text = ("".join(c.text for chunk in answer for c in chunk.choices) if stream
            else answer.choices[0].text)
    assert text == "One two three" + plain


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs(client, server, max_tokens):
    """What lm-eval's loglikelihood asks for."""
    ids = server.post("/tokenize", {"prompt": "One two three four"}).json["tokens"]
    answer = client.completions.create(model=server.model, prompt=[ids], echo=True, logprobs=1,
                                       max_tokens=max_tokens, temperature=0)
    logprobs = answer.choices[0].logprobs
    n = len(ids) + max_tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == n
    assert len(logprobs.top_logprobs) == len(logprobs.text_offset) == n
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    for token, value, top in list(zip(logprobs.tokens, logprobs.token_logprobs,
                                      logprobs.top_logprobs))[1:]:
        assert value <= 0 and top[token] == value and len(top) <= 2
        assert max(top.values()) >= value
    assert "".join(logprobs.tokens[:len(ids)]) == "One two three four"
    assert answer.choices[0].text.startswith("One two three four")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == max_tokens
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        assert answer.choices[0].text[offset:].startswith(token)


def check_prompt_logprobs(items, ids, k):
    assert len(items) == len(ids) and items[0] is None
    for token, item in zip(ids[1:], items[1:]):
        own = item[str(token)]
        assert list(item)[0] == str(token) and len(item) in (k, k + 1)
        assert (len(item) == k) == (own["rank"] <= k) or k == 0
        assert sorted(each["rank"] for each in item.values())[:k] == list(range(1, k + 1))
        by_rank = sorted(item.values(), key=lambda each: each["rank"])
        assert [each["logprob"] for each in by_rank] == sorted((e["logprob"] for e in by_rank), reverse=True)
        assert all(set(each) == {"logprob", "rank", "decoded_token"} for each in item.values())


@pytest.mark.parametrize("k", [0, 2, 7])
def test_prompt_logprobs_as_vllm_has_them(server, k):
    k_given = min(k, 3) if server.kind == "fake" else k  # the fake engine has no more
    ids = [server.post("/tokenize", {"prompt": text}).json["tokens"] for text in ("One two three four", "Five six")]
    body = server.completion(ids, n=2, max_tokens=1, temperature=0, prompt_logprobs=k)
    choices = server.post("/v1/completions", body).json["choices"]
    assert len(choices) == 4
    for i, choice in enumerate(choices):
        assert choice["logprobs"] is None
        check_prompt_logprobs(choice["prompt_logprobs"], ids[i // 2], k_given)
    # The figures are echo's; each list has its own length when both are asked for.
    both = server.post("/v1/completions", {**body, "echo": True, "logprobs": 1}).json["choices"]
    for i, choice in enumerate(both):
        assert choice["prompt_logprobs"] == choices[i]["prompt_logprobs"]
        logprobs = choice["logprobs"]
        assert [c[str(t)]["logprob"] for t, c in zip(ids[i // 2][1:], choice["prompt_logprobs"][1:])] == \
            logprobs["token_logprobs"][1:len(ids[i // 2])]
        assert max(len(top) for top in logprobs["top_logprobs"][1:]) <= 2


def test_prompt_logprobs_of_a_chat(server):
    messages = server.chat()["messages"]
    ids = server.post("/tokenize", {"messages": messages}).json["tokens"]
    reply = server.post("/v1/chat/completions", server.chat(prompt_logprobs=1, max_tokens=2, n=2)).json
    assert len(reply["choices"]) == 2
    check_prompt_logprobs(reply["prompt_logprobs"], ids, 1)
    assert "prompt_logprobs" not in server.post("/v1/chat/completions", server.chat()).json


@pytest.mark.parametrize("fields,code", [({"stream": True, "prompt_logprobs": 0}, "invalid_value"),
                                         ({"prompt_logprobs": 21}, "integer_above_max_value"),
                                         ({"prompt_logprobs": -1}, "integer_below_min_value"),
                                         ({"prompt_logprobs": True}, "invalid_type")])
def test_prompt_logprobs_that_cannot_be(server, fields, code):
    reply = server.post("/v1/completions", server.completion(**fields))
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, "prompt_logprobs", code)


def test_streamed_echo_logprobs_equal_whole(server):
    body = server.completion(echo=True, logprobs=2, max_tokens=4, temperature=0)
    whole = server.post("/v1/completions", body).json["choices"][0]["logprobs"]
    events, done = server.stream("/v1/completions", body)
    assert done
    streamed = {name: [] for name in whole}
    for event in events:
        for choice in event["choices"]:
            for name, values in (choice["logprobs"] or {}).items():
                streamed[name] += values
    assert streamed == whole


def test_max_tokens_zero(server):
    reply = server.post("/v1/completions", server.completion(max_tokens=0)).json
    assert reply["choices"][0]["text"] == "" and reply["usage"]["completion_tokens"] == 0


def test_no_logprobs_is_null(server):
    assert server.post("/v1/completions", server.completion()).json["choices"][0]["logprobs"] is None


def test_best_of_equal_n_is_fine(server):
    assert server.post("/v1/completions", server.completion(n=2, best_of=2)).status == 200


def test_ignore_eos_and_min_tokens(server):
    reply = server.post("/v1/completions", server.completion(max_tokens=40, ignore_eos=True)).json
    assert reply["usage"]["completion_tokens"] == 40
    reply = server.post("/v1/completions", server.completion("ab", max_tokens=30, min_tokens=20)).json
    assert reply["usage"]["completion_tokens"] >= 20


TEXT = "Grüße, 世界! 👋🏽 e\u0301"


def test_tokenize_round_trip(server):
    tokens = server.post("/tokenize", {"content": TEXT}).json["tokens"]
    back = server.post("/detokenize", {"tokens": tokens}).json
    assert back["content"] == back["prompt"] == TEXT


def test_tokenize_shapes(server):
    vllm = server.post("/tokenize", {"prompt": "One two", "return_token_strs": True}).json
    assert vllm["count"] == len(vllm["tokens"]) == len(vllm["token_strs"])
    assert vllm["max_model_len"] > 0
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "One two"}]}).json
    assert chat["count"] >= 1
    assert server.post("/tokenize", {"content": ""}).json["tokens"] == []


def test_long_texts_are_tokenized_beside_the_loop(server):
    text = "One two three é. " * 20000
    tokens = server.post("/tokenize", {"content": text}).json["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json["content"] == text
    with server.connect() as s:  # a client that leaves meanwhile
        body = b'{"content":"' + b"x" * 3000000 + b'"}'
        s.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert server.get("/health").status == 200
    reply = server.post("/tokenize", {"content": "x" * 5000000})
    assert reply.status == 400 and reply.error["param"] == "content"


def test_models(client, server):
    models = client.models.list().data
    assert [m.id for m in models] == [server.model] and models[0].object == "model"
    assert client.models.retrieve(server.model).id == server.model
