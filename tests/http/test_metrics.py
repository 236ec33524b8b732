"""/metrics: the exposition format, vLLM's names, and that the numbers move."""
import re
import shutil
import subprocess

import pytest


def test_format(server):
    server.post("/v1/chat/completions", server.chat())
    text = server.get("/metrics").text
    types, names = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name} twice"
            types[name] = kind
        elif not line.startswith("#"):
            match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (-?[\d.e+-]+|NaN)", line)
            assert match, line
            names.add(re.sub(r"_(bucket|sum|count)$", "", match[1])
                      if re.sub(r"_(bucket|sum|count)$", "", match[1]) in types else match[1])
    assert names <= set(types)
    assert all(kind != "counter" or name.endswith("_total") for name, kind in types.items())


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_reads_it(server):
    check = subprocess.run(["promtool", "check", "metrics"], input=server.get("/metrics").text,
                           text=True, capture_output=True)
    assert "error while linting" not in check.stderr and check.returncode in (0, 3), check.stderr


def test_names_of_vllm(server):
    text = server.get("/metrics").text
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
                 "prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total",
                 "prefix_cache_hits_total", "request_success_total",
                 "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
                 "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket",
                 "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket"):
        assert f'\nvllm:{name}{{model_name="{server.model}"' in text, name


def test_counters_move(server):
    def read():
        return {name: server.metric(name) for name in (
            "vllm:generation_tokens_total", "vllm:prompt_tokens_total",
            "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count",
            "vllm:inter_token_latency_seconds_count", "vllm:request_success_total",
            "vllm:request_generation_tokens_sum", "vllm:request_prompt_tokens_sum")}
    before = read()
    usage = server.post("/v1/chat/completions", server.chat(
        max_tokens=10, ignore_eos=True, temperature=0)).json["usage"]
    after = {name: value - before[name] for name, value in read().items()}
    assert usage["completion_tokens"] == 10
    assert after == {
        "vllm:generation_tokens_total": 10, "vllm:prompt_tokens_total": usage["prompt_tokens"],
        "vllm:time_to_first_token_seconds_count": 1, "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 9, "vllm:request_success_total": 1,
        "vllm:request_generation_tokens_sum": 10,
        "vllm:request_prompt_tokens_sum": usage["prompt_tokens"]}


def test_http_requests_are_counted(server):
    labels = dict(handler="/v1/completions", method="POST", status="4xx")
    before = server.metric("http_requests_total", **labels) or 0
    server.post("/v1/completions", "{}")
    assert server.metric("http_requests_total", **labels) == before + 1


def test_one_log_line_a_request(server):
    reply = server.post("/v1/chat/completions", server.chat(max_tokens=3, ignore_eos=True))
    id = reply.headers["x-request-id"]
    server.wait_until(lambda: id in server.log())  # written after the reply
    lines = [line for line in server.log().splitlines() if id in line]
    assert len(lines) == 1
    assert re.search(r"POST /v1/chat/completions 200 prompt=\d+ cached=\d+ matched=\d+ completion=3 "
                     r"queue_ms=[\d.]+ prefill_ms=[\d.]+ decode_ms=[\d.]+ total_ms=[\d.]+ "
                     r"finish=length$", lines[0]), lines[0]
