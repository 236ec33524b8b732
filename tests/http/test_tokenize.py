"""/tokenize, /detokenize, /tokenizer_info in vLLM's and llama-server's wording, and /openapi.json."""
import json

import pytest


def test_both_wordings_give_the_same_ids(server):
    text = "one two é🙂 <|im_end|>"
    vllm = server.post("/tokenize", {"prompt": text, "add_special_tokens": False, "model": server.model})
    llama = server.post("/tokenize", {"content": text})
    assert vllm.json["tokens"] == llama.json["tokens"]
    pieces = server.post("/tokenize", {"content": text, "with_pieces": True}).json["tokens"]
    assert [p["id"] for p in pieces] == vllm.json["tokens"]
    as_bytes = [p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"])
                for p in pieces]
    assert b"".join(as_bytes).decode() == text
    assert vllm.json["count"] == len(vllm.json["tokens"]) and vllm.json["max_model_len"] > 0
    back = server.post("/detokenize", {"tokens": vllm.json["tokens"]}).json
    assert back["prompt"] == back["content"] == text


def test_large_text_is_the_same_as_a_small_one(server):
    """Above some size the work leaves the loop; the answer must not differ."""
    small = server.post("/tokenize", {"content": "ab cd "}).json["tokens"]
    large = server.post("/tokenize", {"content": "ab cd " * 20000}).json["tokens"]
    assert len(large) >= 20000 and large[-2:] == small[-2:]
    assert server.post("/detokenize", {"tokens": large}).json["content"] == "ab cd " * 20000


def test_messages_are_counted_as_chat_counts_them(server):
    messages = [{"role": "user", "content": "one two"}]
    tokens = server.post("/tokenize", {"messages": messages}).json["tokens"]
    usage = server.post("/v1/chat/completions", server.chat("one two", max_tokens=1)).json["usage"]
    assert len(tokens) == usage["prompt_tokens"]


@pytest.mark.parametrize("path,body,status,param", [
    ("/tokenize", {}, 400, "prompt"), ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
    ("/tokenize", {"content": 5}, 400, "content"), ("/tokenize", {"messages": []}, 400, "messages"),
    ("/tokenize", {"content": "a", "parse_special": 1}, 400, "parse_special"),
    ("/tokenize", {"content": "a", "model": "nobody"}, 404, "model"),
    ("/detokenize", {}, 400, "tokens"), ("/detokenize", {"tokens": "a"}, 400, "tokens"),
    ("/detokenize", {"tokens": [-1]}, 400, "tokens"), ("/detokenize", {"tokens": [10 ** 9]}, 400, "tokens"),
])
def test_mistake(server, path, body, status, param):
    reply = server.post(path, body)
    assert (reply.status, reply.error["param"]) == (status, param), reply.text


def test_no_ids_are_no_text(server):
    assert server.post("/detokenize", {"tokens": []}).json["prompt"] == ""


def test_tokenizer_info(server):
    info = server.get("/tokenizer_info").json
    assert info["eos_token"] and isinstance(info["eos_token_id"], int)
    tokens = server.post("/tokenize", {"content": info["eos_token"]}).json["tokens"]
    assert tokens == [info["eos_token_id"]]


def test_openapi(server):
    reply = server.get("/openapi.json", headers={"Authorization": ""})
    spec = json.loads(reply.text)
    assert spec["openapi"] == "3.1.0"
    chat = spec["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["temperature"]["maximum"] == 2 and chat["n"]["default"] == 1
    listed = {line.split()[1] for line in server.get("/").text.splitlines() if line[:4] in ("GET ", "POST")}
    assert {p.replace("{id}", "*") for p in spec["paths"]} == listed
