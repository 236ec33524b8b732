# What the scripts share; sourced, not run. Sets `root`, the repository's top folder, and goes there.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
# shellcheck disable=SC2034  # used by the scripts that source this
{
    program=build/cli/overfill
    model=models/SmolLM2-135M-Instruct.Q4_1.gguf
    twin=models/smollm2-135m-overfill.gguf
    python=.venv/bin/python
}

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
