#!/usr/bin/env python3
"""report.py RESULTS.json OUT.md: what plugin.py found, as docs/LLAMA_SERVER_TESTS.md."""
import collections
import json
import sys

HEAD = """<!-- Made by scripts/llama-server-tests. -->
# llama.cpp's server tests, run against overfill

`scripts/llama-server-tests` runs `tools/server/tests` of llama.cpp {version} with `overfill serve` in
llama-server's place, on the model that those tests are written for (stories260K). Numbers of prompt
tokens, of cached and of generated ones are compared as they stand there.

{totals}

| file | passed | different | skipped |
| --- | --- | --- | --- |
{files}

## Worded differently, translated for the tests

{translations}

## Both have it, ours is otherwise

These tests fail, and must: one that passes is reported.

{differences}

## Only llama-server has it

{skipped}
"""


def counted(results, outcome):
    """Reasons with their tests, the most frequent first."""
    reasons = collections.defaultdict(list)
    for node, (kind, reason) in results.items():
        if kind == outcome:
            reasons[reason].append(node.split("::", 1)[1])
    return sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))


def main(source, out, version):
    data = json.load(open(source))
    results, files = data["results"], data["files"]
    total = collections.Counter(kind for kind, _ in results.values())
    rows = [f"| `{name}` | {n.get('passed', 0)} | {n.get('different', 0)} | {n.get('skipped', 0)} |"
            for name, n in sorted(files.items())]
    differences = [f"- {reason} ({', '.join('`' + t + '`' for t in tests)})"
                   for reason, tests in counted(results, "different")]
    skipped = [f"- {len(tests)}: {reason}" for reason, tests in counted(results, "skipped")]
    with open(out, "w") as file:
        file.write(HEAD.format(
            version=version, files="\n".join(rows),
            totals=", ".join(f"{total[kind]} {kind}" for kind in
                             ("passed", "different", "skipped", "failed") if total[kind]) + ".",
            translations="\n".join("- " + t for t in data["translations"]),
            differences="\n".join(differences) or "None.", skipped="\n".join(skipped)))


main(*sys.argv[1:])
