"""The quality dial on the wire: what is asked for is told back, in each API's usage."""
import pytest


@pytest.fixture(scope="module")
def twin(server):
    if server.get("/v1/models").json["data"][0]["meta"]["n_params_pruned"] == 0:
        pytest.skip("there is no twin")
    return server


MODES = [({"decode": "full"}, 0), ({"decode": "pruned"}, 0), ({"decode": "refresh", "every": 4}, 4),
         ({"decode": "verify", "every": 3}, 3)]


@pytest.mark.parametrize("dial,every", MODES, ids=[m["decode"] for m, _ in MODES])
def test_dial_is_told_back(twin, dial, every):
    fields = {"overfill": dial, "temperature": 0, "max_tokens": 12, "priority": -1}
    chat = twin.post("/v1/chat/completions", {**twin.chat("ab cd ef gh"), **fields}).json
    events, _ = twin.stream("/v1/chat/completions", {**twin.chat("ab cd ef gh"), **fields,
                                                     "stream_options": {"include_usage": True}})
    message = twin.post("/v1/messages", {"model": twin.model, "max_tokens": 12, "temperature": 0,
                                         "messages": [{"role": "user", "content": "ab cd ef gh"}],
                                         "overfill": dial}).json
    for usage in (chat["usage"], events[-1]["usage"], message["usage"]):
        told = usage["overfill"]
        assert (told["decode"], told["every"]) == (dial["decode"], every)
        assert told["prefill_model"] == twin.model
        assert (told["decode_model"] == twin.model) == (dial["decode"] == "full")
        assert told["accepted_tokens"] <= told["drafted_tokens"]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"]) == \
        chat["choices"][0]["message"]["content"]


def test_verify_writes_the_full_models_answer(twin):
    if twin.kind == "fake":
        pytest.skip("the fake engine has one voice")
    texts = [twin.post("/v1/completions", twin.completion(
        "The capital of France is", max_tokens=24, temperature=0, overfill=dial)).json["choices"][0]["text"]
        for dial in ({"decode": "full"}, {"decode": "verify"})]
    assert texts[0] == texts[1]


def test_cached_tokens_are_told(twin):
    if twin.kind == "fake":
        pytest.skip("the fake engine keeps nothing")
    body = twin.completion("a rather long beginning " * 20, max_tokens=1, temperature=0)
    first, second = (twin.post("/v1/completions", body).json["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["prompt_tokens"] == second["prompt_tokens"]
    off = twin.post("/v1/completions", {**body, "cache_prompt": False}).json["usage"]
    assert off["prompt_tokens_details"]["cached_tokens"] == 0
