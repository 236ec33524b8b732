#!/usr/bin/env python3
"""Asks a running server one question through the official OpenAI client: the full model answers, then
the server's pair as it decodes by default. Prints both answers as they stream, what each took, and how
many of the pair's tokens are what the full model would have written there.

usage: ask.py [--url http://127.0.0.1:8080/v1] [QUESTION]

Exit code 0 when both answers came, 1 otherwise."""
import argparse
import sys
import time

import openai


def say(text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)


class Answer:
    """A streamed answer, printed as it comes."""

    def __init__(self, client, model: str, question: str, max_tokens: int, dial: dict):
        began = time.monotonic()
        first = None
        self.text = ""
        # Neither answer may find the other's prompt in the cache.
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0,
            stream=True, stream_options={"include_usage": True}, extra_body={"cache_prompt": False, **dial})
        for chunk in stream:
            if chunk.usage:
                self.n_tokens = chunk.usage.completion_tokens
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic()
                self.text += chunk.choices[0].delta.content
                print(chunk.choices[0].delta.content, end="", flush=True)
        print(flush=True)
        if first is None:
            raise ValueError("the answer is empty")
        self.first_s = first - began
        self.rest_s = time.monotonic() - first

    def tell(self, more: str = "") -> None:
        speed = (self.n_tokens - 1) / self.rest_s if self.n_tokens > 1 else 0
        say(f"[first token after {1000 * self.first_s:.0f} ms, {self.n_tokens} tokens, {speed:.0f} a second{more}]\n")


def agreement(client, model: str, question: str, answer: Answer) -> float:
    """The full model reads question and answer: the share of the answer's tokens that it holds the
    likeliest at their place."""
    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    tokenize = lambda body: client.post(f"{root}/tokenize", body=body, cast_to=dict[str, object])["tokens"]
    prompt = tokenize({"model": model, "messages": [{"role": "user", "content": question}]})
    tokens = tokenize({"model": model, "content": answer.text})
    read = client.completions.create(model=model, prompt=prompt + tokens, max_tokens=0, echo=True, logprobs=1,
                                     extra_body={"overfill": {"decode": "full"}})
    logprobs = read.choices[0].logprobs
    best = [own is not None and own >= max(top.values()) - 1e-6
            for own, top in zip(logprobs.token_logprobs[len(prompt):], logprobs.top_logprobs[len(prompt):])]
    return sum(best) / len(best)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("question", nargs="?", default="Why is the sky blue?")
    args = parser.parse_args()

    client = openai.OpenAI(base_url=args.url, api_key="none", max_retries=0)
    ask = lambda **dial: Answer(client, model, args.question, args.max_tokens, dial)
    try:
        model = client.models.list().data[0].id
        say(f"{args.question}\n\nThe full model alone:\n")
        ask(overfill={"decode": "full"}).tell()
        say("OverFill, the full model reads and its twin writes:\n")
        pair = ask()
        share = agreement(client, model, args.question, pair)
        pair.tell(f", {100 * share:.0f} % of them the full model's own choice")
    except (openai.OpenAIError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
