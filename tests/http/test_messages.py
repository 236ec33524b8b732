"""/v1/messages: Anthropic's wording, with its official client and by hand."""
import json

import pytest

anthropic = pytest.importorskip("anthropic")
PATH = "/v1/messages"


@pytest.fixture
def client(server):
    return anthropic.Anthropic(base_url=server.base, api_key="k", max_retries=0, timeout=120)


def body(server, content="ab cd ef gh", **fields):
    return {"model": server.model, "max_tokens": 8, "temperature": 0,
            "messages": [{"role": "user", "content": content}], **fields}


def arguments(*args, **fields):
    """The same for the client, which knows no temperature any more."""
    request = body(*args, **fields)
    extra = {"temperature": request.pop("temperature")}
    return {**request, "extra_body": extra}


def test_whole(server, client):
    answer = client.messages.create(**arguments(server, max_tokens=2))
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason == "max_tokens" and answer.stop_sequence is None
    assert answer.usage.output_tokens == 2 and answer.usage.input_tokens > 0


def test_stream_is_the_whole_answer(server, client):
    whole = client.messages.create(**arguments(server))
    with client.messages.stream(**arguments(server)) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_order_of_events(server):
    reply = server.post(PATH, body(server, stream=True, sse_ping_interval=-1))
    assert reply.headers["content-type"].startswith("text/event-stream")
    names, events = [], []
    for block in reply.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data[len("data: "):]))
        assert name == "event: " + events[-1]["type"]
        names.append(events[-1]["type"])
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert events[0]["message"]["usage"]["input_tokens"] > 0
    assert events[-2]["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequence_is_named(fake, stream):
    """The fake engine says its prompt back, so what ends it is known."""
    client = anthropic.Anthropic(base_url=fake.base, api_key="k", max_retries=0)
    request = arguments(fake, "one two three four", max_tokens=50, stop_sequences=["zzz", "three", "our"])
    if stream:
        with client.messages.stream(**request) as s:
            answer = s.get_final_message()
    else:
        answer = client.messages.create(**request)
    assert answer.content[0].text == "one two "
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "three"
    ended = client.messages.create(**arguments(fake, "one two", max_tokens=50, stop_sequences=["zzz"]))
    assert ended.stop_reason == "end_turn" and ended.stop_sequence is None


def test_system_is_chats(server, client):
    answer = client.messages.create(**arguments(server, "four", system=[{"type": "text", "text": "Count."}]))
    chat = server.client().chat.completions.create(
        model=server.model, max_tokens=8, temperature=0,
        messages=[{"role": "system", "content": "Count."}, {"role": "user", "content": "four"}])
    assert answer.content[0].text == chat.choices[0].message.content
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens


def test_count_tokens(server, client):
    request = arguments(server, system="Count.")
    answer = client.messages.create(**request)
    count = client.messages.count_tokens(model=server.model, messages=request["messages"],
                                         system="Count.")
    assert count.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


@pytest.mark.parametrize("fields,param", [
    ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
    ({"stop_sequences": "x"}, "stop_sequences"), ({"thinking": {"type": "enabled"}}, "thinking"),
    ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"), ({"top_k": -1}, "top_k"),
])
def test_mistake(server, fields, param):
    reply = server.post(PATH, body(server, **fields))
    assert reply.status == 400 and reply.json["type"] == "error", reply.text
    assert reply.error["type"] == "invalid_request_error" and reply.error["message"]
    assert reply.error["param"] == param


def test_typed_errors_of_the_client(server, client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**{**arguments(server), "model": "nobody"})
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert caught.value.response.headers["request-id"]
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**arguments(server, temperature=-1))


def test_error_in_the_stream(fake):
    client = anthropic.Anthropic(base_url=fake.base, api_key="k", max_retries=0)
    with pytest.raises(anthropic.APIError):
        with client.messages.stream(**arguments(fake, "!error with more text", max_tokens=50)) as stream:
            for _ in stream:
                pass
