# Sets heal_python: a Python with PyTorch and gguf, from $HEAL_PYTHON, from .venv-heal, from the system if it has
# them (Debian: python3-torch), or installed into .venv-heal. Sourced in the repository's top folder, not run.
# shellcheck shell=bash
has_all() {
    [ -x "$(command -v "$1")" ] && "$1" -c 'import gguf, numpy, safetensors, torch, yaml' 2>/dev/null
}

heal_python=${HEAL_PYTHON-}
if [ -z "$heal_python" ]; then
    for heal_python in .venv-heal/bin/python python3; do
        has_all "$heal_python" && break
        heal_python=
    done
fi
if [ -z "$heal_python" ]; then
    say "PyTorch and gguf into .venv-heal"
    python3 -m venv .venv-heal
    .venv-heal/bin/pip install --quiet -r scripts/heal/requirements.txt
    heal_python=.venv-heal/bin/python
fi
