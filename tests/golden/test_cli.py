"""What `overfill inspect` shows of a file."""
import json
import subprocess


def out_of(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_long_strings_are_whole_in_json_only(program, model):
    shown = json.loads(out_of(program, "inspect", model, "--json"))
    template = shown["metadata"]["tokenizer.chat_template"]
    assert len(template) > 200 and template.endswith("%}"), template
    assert shown["tokenizer"]["chat_template"] == template
    text = out_of(program, "inspect", model)
    line = next(line for line in text.splitlines() if line.lstrip().startswith('"tokenizer.chat_template"'))
    assert line.endswith('..."') and len(line) < 300
