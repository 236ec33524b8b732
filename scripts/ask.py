#!/usr/bin/env python3
"""Streams one chat answer from a running server with the official OpenAI client.

usage: ask.py [--url http://127.0.0.1:8080/v1] [QUESTION]

Exit code 0 when an answer came, 1 otherwise."""
import argparse
import sys
import time

import openai


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    args = parser.parse_args()

    client = openai.OpenAI(base_url=args.url, api_key="none", max_retries=0)
    try:
        model = client.models.list().data[0].id
        print(f"{args.question}\n", file=sys.stderr)
        began = time.monotonic()
        first = None
        n_parts = 0
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": args.question}],
            max_tokens=args.max_tokens,
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if not text:
                continue
            first = first or time.monotonic()
            n_parts += 1
            print(text, end="", flush=True)
        print()
    except openai.OpenAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if first is None:
        print("error: the answer is empty", file=sys.stderr)
        return 1
    ended = time.monotonic()
    print(
        f"\n{model}: first words after {first - began:.2f} s, the rest in {ended - first:.2f} s "
        f"({n_parts} pieces)",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
