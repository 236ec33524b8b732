"""/v1/responses: whole and streamed, with the official client and by hand."""
import json

import openai
import pytest

PATH = "/v1/responses"


def events_of(text):
    events = []
    for block in text.split("\n\n"):
        if block.startswith(":") or not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data[len("data: "):])
        assert name == "event: " + event["type"]
        events.append(event)
    return events


def body(server, **fields):
    return {"model": server.model, "input": "ab cd ef gh", "max_output_tokens": 8, "temperature": 0,
            **fields}


def test_whole(server):
    answer = server.client().responses.create(**body(server, instructions="Be short."))
    assert answer.object == "response" and answer.id.startswith("resp_")
    assert answer.status in ("completed", "incomplete") and answer.error is None
    assert answer.output[0].content[0].text == answer.output_text != ""
    assert answer.output[0].role == "assistant" and answer.instructions == "Be short."
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens <= 8


def test_cut_by_max_output_tokens_is_incomplete(server):
    answer = server.client().responses.create(**body(server, max_output_tokens=2))
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete" and answer.usage.output_tokens == 2


@pytest.mark.parametrize("with_logprobs", [False, True])
def test_stream_is_the_whole_answer(server, with_logprobs):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2} if with_logprobs else {}
    whole = server.client().responses.create(**body(server, **fields))
    reply = server.post(PATH, body(server, stream=True, **fields))
    events = events_of(reply.text)
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    names = [e["type"] for e in events]
    assert names[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]
    assert names[-4:-1] == ["response.output_text.done", "response.content_part.done",
                            "response.output_item.done"]
    assert set(names[4:-4]) == {"response.output_text.delta"}
    assert names[-1] == ("response.completed" if whole.status == "completed"
                         else "response.incomplete")
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert text == whole.output_text == events[-4]["text"] == events[-3]["part"]["text"]
    final = events[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == text
    assert final["usage"] == json.loads(whole.usage.model_dump_json(exclude_unset=True))
    item_ids = {e["item_id"] for e in events if "item_id" in e}
    assert item_ids == {final["output"][0]["id"]}
    logprobs = [l for e in events if e["type"] == "response.output_text.delta" for l in e["logprobs"]]
    assert bool(logprobs) == with_logprobs
    assert logprobs == final["output"][0]["content"][0]["logprobs"]
    if with_logprobs:
        assert all(len(l["top_logprobs"]) == 2 for l in logprobs)


def test_stream_helper_of_the_client(fake):  # it insists on an answer that was not cut
    server = fake
    with server.client().responses.stream(**body(server)) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text


def test_conversation_is_chats(server):
    """The same conversation as chat gives the same prompt."""
    items = [{"role": "user", "content": [{"type": "input_text", "text": "one two"}]},
             {"type": "message", "role": "assistant",
              "content": [{"type": "output_text", "text": "three", "annotations": []}]},
             {"role": "user", "content": "four"}]
    answer = server.client().responses.create(**body(server, input=items, instructions="Count."))
    chat = server.client().chat.completions.create(
        model=server.model, max_tokens=8, temperature=0,
        messages=[{"role": "system", "content": "Count."}, {"role": "user", "content": "one two"},
                  {"role": "assistant", "content": "three"}, {"role": "user", "content": "four"}])
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


@pytest.mark.parametrize("field,value,param,code", [
    ("input", None, "input", "missing_required_parameter"), ("input", 5, "input", "invalid_type"),
    ("input", [], "input", "empty_array"),
    ("input", [{"type": "function_call_output", "call_id": "x", "output": "y"}], "input[0]",
     "unsupported_parameter"),
    ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
     "input[0].content[0]", "unsupported_parameter"),
    ("input", [{"role": "king", "content": "x"}], "input[0].role", "invalid_value"),
    ("max_output_tokens", 0, "max_output_tokens", "integer_below_min_value"),
    ("previous_response_id", "resp_1", "previous_response_id", "unsupported_parameter"),
    ("background", True, "background", "unsupported_parameter"),
    ("truncation", "auto", "truncation", "unsupported_parameter"),
    ("tools", [{"type": "web_search"}], "tools", "unsupported_parameter"),
    ("text", {"format": {"type": "json_object"}}, "text.format", "unsupported_parameter"),
    ("include", ["file_search_call.results"], "include", "unsupported_parameter"),
    ("temperature", 3, "temperature", "decimal_above_max_value"),
    ("instructions", 5, "instructions", "invalid_type"),
])
def test_mistake(server, field, value, param, code):
    reply = server.post(PATH, body(server, **{field: value}))
    assert reply.status == 400, reply.text
    assert (reply.error["param"], reply.error["code"]) == (param, code)


def test_what_asks_for_nothing_is_taken(server):
    assert server.post(PATH, body(server, store=False, tools=[], tool_choice="auto", reasoning=None,
                                  truncation="disabled", text={"format": {"type": "text"}},
                                  parallel_tool_calls=True, metadata={"a": "b"},
                                  previous_response_id=None)).status == 200


def test_too_long(server):
    context = server.get("/v1/models").json["data"][0]["max_model_len"]
    reply = server.post(PATH, body(server, input="ab cd " * context))
    assert reply.status == 400 and reply.error["code"] == "context_length_exceeded"
    assert reply.error["param"] == "input" and reply.error["n_ctx"] == context


def test_error_in_the_stream(fake):
    client = fake.client()
    with pytest.raises(openai.APIError):
        for _ in client.responses.create(model="fake", input="!error with more text", temperature=0,
                                         stream=True):
            pass
