"""`overfill tokenize`: the rows that training reads."""
import json
import subprocess


import pytest


@pytest.fixture
def tokenize(program, model):
    return lambda *more: subprocess.run([program, "tokenize", "--model", model, *more], capture_output=True, text=True)


@pytest.fixture
def rows_of(tokenize):
    def rows(path, *more):
        done = tokenize("--data", path, *more)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]
    return rows


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_a_chats_prompt_ends_where_its_answer_begins(tmp_path, rows_of):
    path = tmp_path / "chats.jsonl"
    chats = [chat("What is the capital of France?", "Paris."), chat("What is the capital of France?", "It is Paris, on the Seine.")]
    path.write_text("".join(json.dumps(c) + "\n" for c in chats))
    a, b = rows_of(path)
    n = a["prompt"]
    assert 0 < n == b["prompt"] < len(a["tokens"]) < len(b["tokens"])
    assert a["tokens"][:n] == b["tokens"][:n] and a["tokens"][n:] != b["tokens"][n:]


def test_a_text_told_twice_counts_once_and_tokens_are_bounded(tmp_path, rows_of):
    path = tmp_path / "texts.jsonl"
    long = "The river rises in the hills and flows through three towns before it meets the sea."
    texts = [f"Summarise.\n{long}", f"{long}\nWhere does it end?", "Another text of another length, which stands alone."]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    rows = rows_of(path)
    assert len(rows) == 2 and all(r["prompt"] == 0 and r["tokens"] for r in rows)
    assert len(rows_of(path, "--tokens", "1")) == 1


def test_what_is_wrong_is_named(tmp_path, tokenize):
    done = tokenize()
    assert done.returncode == 2 and "--data" in done.stderr
    done = tokenize("--data", tmp_path / "none.txt")
    assert done.returncode == 1 and "none.txt" in done.stderr
