"""The real engine across the end of its process, and with a thread that does not go on: what is
found again, what is told, and that nobody gets half an answer for a whole one."""
import contextlib
import ctypes
import http.client
import json
import pathlib
import re
import resource
import signal
import threading

import pytest

from conftest import Server, command_of, stop_cleanly

CHAT = "/v1/chat/completions"
STORY = "Tell me about the sea, the ships on it and the people who live beside it. " * 8


def start(tmp_path, name, *extra):
    return Server(command_of("real", extra), tmp_path / name)


def turn(server, *messages):
    roles = ["user", "assistant"]
    reply = server.post(CHAT, {"model": server.model, "temperature": 0, "max_tokens": 8, "messages": [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]})
    assert reply.status == 200, reply.text
    answer = reply.json
    return (answer["choices"][0]["message"]["content"],
            answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_sandboxed_server_reads_a_key_file_that_was_replaced(tmp_path):
    """As editors and secret managers replace it: a new file of the same name."""
    (tmp_path / "keys").mkdir()
    path, other = tmp_path / "keys" / "api", tmp_path / "keys" / "new"
    path.write_text("old\n")
    server = start(tmp_path, "log", "--api-key-file", str(path))
    status = lambda key: server.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status
    assert [status(key) for key in ("old", "new")] == [200, 401]
    other.write_text("new\n")
    other.rename(path)
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: status("new") == 200)
    assert status("old") == 401
    stop_cleanly(server)


@pytest.fixture
def kept(tmp_path):
    """A state folder after a first turn; and what was said in it."""
    folder = tmp_path / "state"
    server = start(tmp_path, "first", "--state-dir", str(folder))
    answer, cached = turn(server, STORY)
    assert cached == 0
    stop_cleanly(server)
    assert "kept" in server.log() and (folder / "prefix-cache").stat().st_mode & 0o777 == 0o600
    return folder, answer


def test_second_turn_after_a_restart_finds_the_first(kept, tmp_path):
    folder, answer = kept
    server = start(tmp_path, "second", "--state-dir", str(folder))
    text, cached = turn(server, STORY, answer, "And then?")
    assert cached >= 96, server.log()
    stop_cleanly(server)
    fresh = start(tmp_path, "fresh")
    assert turn(fresh, STORY, answer, "And then?") == (text, 0)
    stop_cleanly(fresh)


@pytest.mark.parametrize("harm", ["corrupt", "cut", "foreign"])
def test_file_that_is_no_good_is_left_out_with_a_line(kept, tmp_path, harm):
    folder, answer = kept
    path = folder / "prefix-cache"
    data = bytearray(path.read_bytes())
    extra = []
    if harm == "corrupt":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        data = data[:len(data) // 2]
    else:
        extra = ["--kv-type", "bf16"]
    path.write_bytes(data)
    server = start(tmp_path, "second", "--state-dir", str(folder), *extra)
    lines = [l for l in server.log().splitlines() if "state-dir" in l]
    assert len(lines) == 1 and "begins empty" in lines[0] and str(path) in lines[0], lines
    assert turn(server, STORY, answer, "And then?")[1] == 0
    stop_cleanly(server)


def test_full_disk_is_a_line_and_nothing_else(kept, tmp_path):
    folder, answer = kept
    before = (folder / "prefix-cache").read_bytes()
    server = start(tmp_path, "second", "--state-dir", str(folder))
    turn(server, "Something else: " + STORY)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    assert server.stop() == 0
    lines = [l for l in server.log().splitlines() if "state-dir" in l]
    assert "not kept" in lines[-1] and str(folder) in lines[-1], lines
    assert (folder / "prefix-cache").read_bytes() == before
    assert [p.name for p in folder.iterdir()] == ["prefix-cache"]


def test_state_folder_that_cannot_be_made_is_told_at_start(tmp_path):
    server = Server(command_of("real", ["--state-dir", "/proc/no/such"]), tmp_path / "log", wait=False)
    assert server.process.wait(30) == 1
    assert "state-dir: /proc/no/such" in server.log()


# --- packed weights ------------------------------------------------------------------------------

def packed_lines(server):
    """The word that each line about the cache begins with: found, kept, made (anew)."""
    return [l.split("packed-cache: ")[1].split()[0] for l in server.log().splitlines() if "packed-cache: " in l]


def answer_of(server):
    return server.post("/v1/completions", server.completion("Once upon a time", temperature=0, max_tokens=8,
                                                            logprobs=1)).json["choices"]


def test_second_start_takes_the_packed_weights(tmp_path):
    folder = tmp_path / "packed"
    plain = start(tmp_path, "plain")
    expected = answer_of(plain)
    stop_cleanly(plain)
    said = {}
    for name in ("first", "second"):
        server = start(tmp_path, name, "--packed-cache", str(folder))
        said[name] = packed_lines(server)
        assert answer_of(server) == expected
        stop_cleanly(server)
    files = sorted(folder.iterdir())  # one for each model
    assert files and all(f.stat().st_mode & 0o777 == 0o600 for f in files)
    assert said == {"first": ["kept"] * len(files), "second": ["found"] * len(files)}
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)
    server = start(tmp_path, "third", "--packed-cache", str(folder))
    assert sorted(packed_lines(server)) == ["found"] * (len(files) - 1) + ["kept", "made"], server.log()
    assert answer_of(server) == expected
    stop_cleanly(server)


def test_packed_cache_that_cannot_be_made_is_told_at_start(tmp_path):
    server = Server(command_of("real", ["--packed-cache", "/proc/no/such"]), tmp_path / "log", wait=False)
    assert server.process.wait(30) == 1
    assert "packed-cache: /proc/no/such" in server.log()


# --- a thread that does not go on ----------------------------------------------------------------

PTRACE_ATTACH, PTRACE_DETACH = 16, 17


@contextlib.contextmanager
def stopped_thread(pid, name):
    """Stops one thread of another process, as if it hung."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    tids = [int(t.name) for t in pathlib.Path(f"/proc/{pid}/task").iterdir()
            if (t / "comm").read_text().strip() == name]
    assert tids, f"no thread {name}"
    stopped = []
    try:
        for tid in tids:
            if libc.ptrace(PTRACE_ATTACH, tid, None, None) != 0:
                pytest.skip(f"ptrace is not allowed here: errno {ctypes.get_errno()}")
            stopped.append(tid)
            while "tracing stop" not in pathlib.Path(f"/proc/{pid}/task/{tid}/status").read_text():
                pass
        yield
    finally:
        for tid in stopped:
            libc.ptrace(PTRACE_DETACH, tid, None, None)


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_stage_that_hangs_is_told_and_takes_nobody_along(tmp_path, stage):
    server = start(tmp_path, "log", "--stall-seconds", "1")
    body = server.completion("Once upon a time", temperature=0, max_tokens=24, cache_prompt=False,
                             ignore_eos=True)
    whole = server.post("/v1/completions", body).json["choices"]
    replies = []
    with stopped_thread(server.process.pid, stage):
        waiting = threading.Thread(target=lambda: replies.append(server.post("/v1/completions", body)))
        waiting.start()
        server.wait_until(lambda: server.get("/health").status == 503, 30)
        health = server.get("/health")
        assert health.json["status"] == "stalled" and health.error["code"] == "engine_stalled"
        for path in ("/metrics", "/v1/models", "/version"):
            assert server.get(path, timeout=10).status == 200
        assert server.post("/tokenize", {"content": "a b"}, timeout=10).status == 200
    waiting.join(60)
    assert replies[0].status == 200 and replies[0].json["choices"] == whole
    server.wait_until(lambda: server.get("/health").status == 200)
    stop_cleanly(server)


def test_process_that_dies_leaves_no_answer_that_looks_whole(tmp_path):
    server = start(tmp_path, "log")
    body = server.chat(stream=True, max_tokens=2000, ignore_eos=True)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", CHAT, json.dumps(body))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    server.process.kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)) as caught:
        response.read()
    partial = getattr(caught.value, "partial", b"").decode(errors="replace")
    assert "[DONE]" not in partial and not re.search(r'"finish_reason":"', partial)
    server.process.wait(10)
