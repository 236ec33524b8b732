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
    # The twin of quickstart --prune: hidden size, MLP size (the model has 576 and 1536) and type;
    # and how the model answers scripts/questions.txt to calibrate it (seeded: the same every time).
    pruned_hidden=512
    pruned_mlp=1280
    pruned_type=q4_1
    own_text=(--questions scripts/questions.txt --seed 1 --temperature 0.8 --max-tokens 320)
}

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
