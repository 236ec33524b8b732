"""pytest plugin for llama.cpp's tools/server/tests, run against overfill in llama-server's place.

Tests of what only llama-server has are skipped with the reason. Where both have a thing but word it
differently for good reason, TRANSLATIONS put our wording into theirs, so that the rest of the test
still counts. What then differs is in differences.py: those tests must fail, for the reason given
there; one that passes is an error too. Everything else must pass. The counts go to
OVERFILL_LLAMA_REPORT as JSON."""
import collections
import copy
import fnmatch
import functools
import json
import os
import re
import sys

import pytest

sys.path[:0] = [os.getcwd(), os.path.dirname(os.path.abspath(__file__))]
from differences import (DIFFERENCES, MODEL_NOT_AT_HAND, PATHS_NOT_SERVED,
                         SERVER_NOT_LIKE_OURS)  # noqa: E402

THEIR_OWN = "llama.cpp's tests leave them out by themselves (slow, containers, other systems)"
results = {}  # node id -> (outcome, reason)
current = {}  # of the running test: "server", and "skip", why it is to be skipped

TRANSLATIONS = [
    "`model`: ours must be named and known (OpenAI's 404 `model_not_found`); theirs takes anything. "
    "The adapter sends the served name.",
    "`system_fingerprint`: ours begins with `fp_` as OpenAI's does, theirs with `b`.",
    "First event of a chat stream: OpenAI and we send `content: \"\"`, they send null.",
    "A prompt that does not fit: ours is OpenAI's `invalid_request_error` with the code "
    "`context_length_exceeded`, theirs the type `exceed_context_size_error`. `n_prompt_tokens` and "
    "`n_ctx` are the same. A wrong key: ours is OpenAI's `invalid_request_error` with the code "
    "`invalid_api_key`, theirs the type `authentication_error`.",
    "Text that a seed gave their sampler is not asked for: random numbers differ. Numbers of tokens "
    "and all shapes are.",
]


# --- what the tests send and get ---------------------------------------------------------------

def from_ours(body):
    """One of our bodies or events, in llama-server's words."""
    if not isinstance(body, dict):
        return body
    body = copy.deepcopy(body)
    if str(body.get("system_fingerprint", "")).startswith("fp_"):
        body["system_fingerprint"] = "b" + body["system_fingerprint"]
    for choice in body.get("choices") or []:
        delta = choice.get("delta") or {}
        if delta.get("role") and delta.get("content") == "":
            delta["content"] = None
    error = body.get("error")
    if isinstance(error, dict):
        types = {"context_length_exceeded": "exceed_context_size_error",
                 "invalid_api_key": "authentication_error"}
        error["type"] = types.get(error.get("code"), error.get("type"))
    return body


def object_from_ours(answer):
    """The same for an object of the client library."""
    if getattr(answer, "system_fingerprint", None):
        answer.system_fingerprint = "b" + answer.system_fingerprint
    for choice in getattr(answer, "choices", None) or []:
        delta = getattr(choice, "delta", None)
        if delta and delta.role and delta.content == "":
            delta.content = None
    return answer


def name_the_model(server, path, data):
    wants = path.startswith(("/v1/", "/chat/", "/responses", "/completions"))
    if not wants or not isinstance(data, dict):
        return data
    return {**data, "model": server.model_alias or "stories260K"}


def skip(reason):
    """Some tests ask from threads, which swallow the exception: it is remembered too."""
    current["skip"] = reason
    pytest.skip(reason)


def skip_path(path):
    for pattern, reason in PATHS_NOT_SERVED.items():
        if fnmatch.fnmatch(path.split("?")[0], pattern):
            skip(reason)


def patch_client(create):
    @functools.wraps(create)
    def named(self, *args, **kwargs):
        kwargs["model"] = current["server"].model_alias or "stories260K"
        answer = create(self, *args, **kwargs)
        if kwargs.get("stream"):
            return (object_from_ours(event) for event in answer)
        return object_from_ours(answer)
    return named


def patch_server(utils):
    server_class = utils.ServerProcess
    start, request, stream = (server_class.start, server_class.make_request,
                              server_class.make_stream_request)

    def start_ours(self, *args, **kwargs):
        for is_unlike, reason in SERVER_NOT_LIKE_OURS:
            if is_unlike(self):
                skip(reason)
        current["server"] = self
        return start(self, *args, **kwargs)

    def request_ours(self, method, path, data=None, *args, **kwargs):
        skip_path(path)
        reply = request(self, method, path, name_the_model(self, path, data), *args, **kwargs)
        reply.body = from_ours(reply.body)
        return reply

    def stream_ours(self, method, path, data=None, *args, **kwargs):
        skip_path(path)
        try:
            for event in stream(self, method, path, name_the_model(self, path, data), *args,
                                **kwargs):
                yield from_ours(event)
        except utils.ServerError as error:
            error.body = from_ours(error.body)
            raise

    server_class.start = start_ours
    server_class.make_request = request_ours
    server_class.make_stream_request = stream_ours


def pytest_configure(config):
    from openai.resources.chat.completions import Completions as ChatCompletions
    from openai.resources.completions import Completions
    from openai.resources.responses import Responses
    import utils
    patch_server(utils)
    utils.match_regex = lambda regex, text: isinstance(text, str)
    utils.download_file = lambda *_: skip(MODEL_NOT_AT_HAND)
    utils.ServerPreset.load_all = staticmethod(lambda: None)  # it downloads every model
    for api in (ChatCompletions, Completions, Responses):
        api.create = patch_client(api.create)


# --- what is expected, and what came -------------------------------------------------------------

def pytest_collection_modifyitems(items):
    known = {item.nodeid: item for item in items}
    for pattern, reason in DIFFERENCES.items():
        found = [node for node in known if re.fullmatch(pattern, node)]
        for node in found:
            known[node].add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    current.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and "skip" in current:
        report.outcome, report.longrepr = "skipped", (item.nodeid, 0, "Skipped: " + current["skip"])
    if hasattr(report, "wasxfail"):
        outcome = ("different", report.wasxfail) if report.skipped else ("failed", "it passes")
    elif report.skipped:
        outcome = ("skipped", current.get("skip", THEIR_OWN))
    elif report.failed:
        outcome = ("failed", "")
    elif report.when != "call":
        return
    else:
        outcome = ("passed", "")
    results[item.nodeid] = outcome


def pytest_sessionfinish():
    path = os.environ.get("OVERFILL_LLAMA_REPORT")
    if not path:
        return
    files = collections.defaultdict(collections.Counter)
    for node, (outcome, _) in results.items():
        files[node.split("::")[0].removeprefix("unit/")][outcome] += 1
    with open(path, "w") as out:
        json.dump({"results": results, "files": files, "translations": TRANSLATIONS}, out, indent=1)
