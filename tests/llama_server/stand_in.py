#!/usr/bin/env python3
"""Takes llama-server's place in its own tests: turns its options into ours and becomes `overfill
serve`. OVERFILL_BINARY is the program, OVERFILL_STORIES the model. What has no counterpart and
changes no answer of ours (batch sizes, slots, sampling defaults of the server) is left out; what
would is skipped by plugin.py before this is called."""
import os
import sys

TAKES_VALUE = {"--port", "--host", "--alias", "--ctx-size", "--parallel", "--api-key",
               "--chat-template", "--temp", "--seed", "--hf-repo", "--hf-file", "--batch-size",
               "--ubatch-size", "--threads", "--n-predict", "-fa", "--cache-ram",
               "--reasoning-format"}


def options(arguments):
    found, i = {}, 0
    while i < len(arguments):
        takes = arguments[i] in TAKES_VALUE
        found[arguments[i]] = arguments[i + 1] if takes else True
        i += 2 if takes else 1
    return found


def main():
    given = options(sys.argv[1:])
    context = int(given.get("--ctx-size", 2048)) // int(given.get("--parallel", 1))
    command = [os.environ["OVERFILL_BINARY"], "serve", "--model", os.environ["OVERFILL_STORIES"],
               "--host", given["--host"], "--port", given["--port"], "--context", str(context),
               # llama-server's template for models without one
               "--chat-template", given.get("--chat-template", "chatml"),
               "--prefill-threads", "1", "--decode-threads", "1"]
    if "--alias" in given:
        command += ["--model-id", given["--alias"]]
    if "--api-key" in given:
        os.environ["OVERFILL_API_KEYS"] = given["--api-key"]
    os.execv(command[0], command)


main()
