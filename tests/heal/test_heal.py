"""What a user of scripts/heal would notice: right losses and gradients, exact resume, files that are what
was trained, and a twin that writes better than before."""
import json
import subprocess
import sys

import numpy
import pytest
import torch
from gguf import GGUFReader, GGMLQuantizationType
from gguf.quants import dequantize

import data
import files
import grid
import heal
import model as llama
import scratch
from conftest import HIDDEN, KV_HEADS, PROGRAM, ROOT, SHARED, overfill, write_model
from loss import vocabulary_loss


def trainer(full, twin, recipe, **changes):
    options = heal.read_recipe(recipe(**changes), {})
    return heal.Trainer(files.Model(full), files.Model(twin), options, torch.device("cpu"), torch.float32)


def some_rows(seed=3):
    chance = numpy.random.default_rng(seed)
    ids = [chance.integers(0, 96, n).tolist() for n in (30, 22)]
    return [data.Row(ids[0], 12, True), data.Row(ids[1], 5, False)]


def plain_logits(shape, w, ids, kv_prompt, start):
    """One token after the other, one head after the other; kv_prompt[i]: keys and values of layer i in
    front of position start, or None."""
    cache = [([], []) if kv_prompt is None else (list(kv_prompt[i][0]), list(kv_prompt[i][1]))
             for i in range(shape.layers)]
    norm = lambda x, g: x / torch.sqrt((x * x).mean() + shape.eps) * g
    half = shape.head_dim // 2
    out = []

    def turned(x, position):
        y = []
        for head in x.view(-1, shape.head_dim):
            parts = []
            for j in range(half):
                angle = position * shape.rope_base ** (-2 * j / shape.head_dim)
                c, s = numpy.cos(angle), numpy.sin(angle)
                parts += [head[2 * j] * c - head[2 * j + 1] * s, head[2 * j] * s + head[2 * j + 1] * c]
            y.append(torch.stack(parts))
        return torch.stack(y)

    for offset, token in enumerate(ids):
        position = start + offset
        x = w["token_embd.weight"][token]
        for i in range(shape.layers):
            name = lambda part: w[f"blk.{i}.{part}.weight"]
            h = norm(x, name("attn_norm"))
            q = turned(name("attn_q") @ h, position)
            cache[i][0].append(turned(name("attn_k") @ h, position))
            cache[i][1].append((name("attn_v") @ h).view(-1, shape.head_dim))
            heads = []
            for j in range(shape.heads):
                g = j // (shape.heads // shape.kv_heads)
                keys = torch.stack([k[g] for k in cache[i][0]])
                values = torch.stack([v[g] for v in cache[i][1]])
                heads.append(torch.softmax(keys @ q[j] / shape.head_dim ** 0.5, 0) @ values)
            x = x + name("attn_output") @ torch.cat(heads)
            h = norm(x, name("ffn_norm"))
            gate = name("ffn_gate") @ h
            x = x + name("ffn_down") @ (gate / (1 + torch.exp(-gate)) * (name("ffn_up") @ h))
        out.append(llama.head(w) @ norm(x, w["output_norm.weight"]))
    return torch.stack(out), cache


def plain_loss(t, rows, weights, costs_of=lambda row: {}):
    """KL of the answers to what the full model says, less the costs {(place, token): logits} there."""
    total = 0
    alone = t.recipe["condition"] == "alone"
    for row in rows:
        begin = 0 if alone else row.start
        with torch.no_grad():
            theirs, _ = plain_logits(t.full_shape, t.full, row.ids[:-1], None, 0)
            prompt = None if alone else plain_logits(t.full_shape, t.full, row.ids[:row.start], None, 0)[1]
        for (at, token), cost in costs_of(row).items():
            if at < len(theirs):
                theirs[at, token] -= cost
        mine, _ = plain_logits(t.twin.shape, weights, row.ids[begin:-1], prompt, begin)
        total = total + torch.nn.functional.kl_div(
            torch.log_softmax(mine[row.start - begin:], 1), torch.log_softmax(theirs[row.start:], 1),
            reduction="sum", log_target=True)
    return total


@pytest.mark.parametrize("condition", ["overfill", "alone"])
def test_loss_and_gradient_are_those_of_a_plain_computation(tmp_path, recipe, condition):
    full = write_model(tmp_path / "full.gguf", 1)
    twin = write_model(tmp_path / "twin.gguf", 2, hidden=32, mlp=64, is_tied=False)
    t = trainer(full, twin, recipe, type="f32", head_type="f32", condition=condition)
    t.twin.see()
    rows = some_rows()
    loss, _ = t.run(data.pad(rows), "kl")
    loss.backward()
    plain = {n: w.detach().clone().requires_grad_() for n, w in t.twin.latent.items()}
    expected = plain_loss(t, rows, plain)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, w in plain.items():
        torch.testing.assert_close(t.twin.seen[name].grad, w.grad, rtol=2e-3, atol=2e-4, msg=name)


def plain_penalties(ids, start, options):
    """{(place, token): what it costs there}, for an answer ids[start:]."""
    costs = {}
    for at in range(start, len(ids)):
        for earlier in range(start, at):
            length = 0
            while earlier - length >= start and ids[earlier - length] == ids[at - length]:
                length += 1
            if length >= options["allowed"]:
                cost = min(options["most"], options["multiplier"] * options["base"] ** (length - options["allowed"]))
                key = at, ids[earlier + 1]
                costs[key] = max(cost, costs.get(key, 0))
    return costs


@pytest.mark.parametrize("condition", ["overfill", "alone"])
def test_answers_are_learned_without_what_repeats_them(tmp_path, recipe, condition):
    full = write_model(tmp_path / "full.gguf", 1)
    twin = write_model(tmp_path / "twin.gguf", 2, hidden=32, mlp=64, is_tied=False)
    options = {"allowed": 2, "multiplier": 1.5, "base": 2.0, "most": 4.0}
    t = trainer(full, twin, recipe, type="f32", head_type="f32", condition=condition, repeats=options)
    for weights in (t.full, t.twin.latent):
        weights["output_norm.weight"] *= 0.1  # so flat that every token counts
    t.twin.see()
    chance = numpy.random.default_rng(5)
    rows = [data.Row(chance.integers(0, 3, n).tolist(), start, is_answer)
            for n, start, is_answer in ((30, 4, False), (34, 6, True), (26, 3, True))]
    loss, _ = t.run(data.pad(rows, options["allowed"]), "kl")
    costs = [plain_penalties(row.ids, row.start, options) if row.is_answer else {} for row in rows]
    expected = plain_loss(t, rows, t.twin.latent, lambda row: costs[rows.index(row)])
    assert {1.5, 3.0, 4.0} <= {cost for of_row in costs for cost in of_row.values()}
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert plain_loss(t, rows, t.twin.latent).item() != pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("changes, words", [
    ({"repeats": {"allowed": 2}}, "repeats: .*multiplier"),
    ({"repeats": {"allowed": 0, "multiplier": 1, "base": 2, "most": 3}}, "allowed of 1"),
    ({"repeats": {"allowed": 2, "multiplier": 1, "base": 2, "most": 3}, "objective": "ce"}, "objective ce")])
def test_repeats_that_say_nothing_are_refused(recipe, changes, words):
    with pytest.raises(ValueError, match=words):
        heal.read_recipe(recipe(**changes), {})


def test_cross_entropy_is_torchs(recipe):
    states, weight = (torch.randn(n, 16, requires_grad=True) for n in (300, 50))
    following = torch.randint(0, 50, (300,))
    loss, _ = vocabulary_loss(states, weight, torch.randn(300, 8), torch.randn(50, 8), following, "ce")
    loss.backward()
    mine = states.grad.clone(), weight.grad.clone()
    states.grad = weight.grad = None
    expected = torch.nn.functional.cross_entropy(states @ weight.T, following, reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(mine, (states.grad, weight.grad), rtol=1e-3, atol=1e-4)


def test_the_model_itself_as_twin_has_nothing_to_learn(tmp_path, recipe):
    full = write_model(tmp_path / "full.gguf", 1)
    t = trainer(full, full, recipe, type="f32", head_type="f32")
    t.twin.see()
    batch = data.pad(some_rows())
    _, sums = t.run(batch, "kl")
    assert sums[0].item() == pytest.approx(0, abs=1e-4)
    assert sums[1].item() == batch.n_targets


@pytest.mark.parametrize("name", grid.GRIDS)
def test_the_file_holds_the_values_that_were_trained(name):
    torch.manual_seed(1)
    weight = torch.randn(8, 96) * 0.1
    g = grid.Grid(name, weight)
    g.log += torch.randn_like(g.log) * 0.05
    blocks = g.encode(weight)
    read = torch.from_numpy(numpy.array(dequantize(blocks, GGMLQuantizationType[name.upper()])))
    torch.testing.assert_close(read, g.values(weight), rtol=1e-6, atol=1e-7)
    again = grid.Grid(name, read, grid.stored_scales(name, blocks, 96))
    torch.testing.assert_close(again.values(read), read, rtol=1e-6, atol=1e-7)
    assert (g.values(weight) - weight).square().mean() < 0.02 * weight.square().mean()


def run(tmp_path, recipe_path, documents, out, *more, full=None, twin=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/heal/heal.py"), "--full", str(full or tmp_path / "full.gguf"), "--twin",
         str(twin or tmp_path / "twin.gguf"), "--data", documents, "--recipe", recipe_path, "--out",
         str(tmp_path / out), "--threads", "1", *more], capture_output=True, text=True)


def curve(path):
    return [json.loads(line) for line in open(path)]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, recipe, documents):
    write_model(tmp_path / "full.gguf", 1)
    write_model(tmp_path / "twin.gguf", 2, hidden=32)
    r = recipe()
    assert run(tmp_path, r, documents, "whole.gguf").returncode == 0
    assert run(tmp_path, r, documents, "parts.gguf", "--stop-after", "2").returncode == 0
    assert run(tmp_path, r, documents, "parts.gguf").returncode == 0
    a, b = (GGUFReader(tmp_path / n) for n in ("whole.gguf", "parts.gguf"))
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    for x, y in zip(a.tensors, b.tensors):
        assert numpy.array_equal(x.data, y.data), x.name
    steps = [row["step"] for row in curve(tmp_path / "parts.gguf.curve.jsonl") if "held" not in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_next_stage_begins_where_the_last_one_ended(tmp_path, recipe, documents):
    write_model(tmp_path / "full.gguf", 1)
    write_model(tmp_path / "twin.gguf", 2, hidden=32)
    assert run(tmp_path, recipe(), documents, "first.gguf").returncode == 0
    state = str(tmp_path / "first.gguf.state")
    next_stage = recipe(steps=2, rate=1e-3, seed=5)
    assert run(tmp_path, next_stage, documents, "second.gguf", "--after", state).returncode == 0
    ended, begun = curve(tmp_path / "first.gguf.curve.jsonl")[-1], curve(tmp_path / "second.gguf.curve.jsonl")[0]
    assert begun == {"step": 0, "held": ended["held"]}
    done = run(tmp_path, recipe(type="q5_0"), documents, "third.gguf", "--after", state)
    assert done.returncode == 1 and "type q4_0, this recipe has q5_0" in done.stderr


def test_few_documents_are_not_all_held_back(tmp_path, recipe, documents):
    write_model(tmp_path / "full.gguf", 1)
    write_model(tmp_path / "twin.gguf", 2, hidden=32)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(open(documents).readlines()[:10]))
    done = run(tmp_path, recipe(), str(few), "few.gguf")
    assert done.returncode == 0, done.stderr


TINY = ROOT / "tests/data/tiny"  # folders, and what transformers computes from them


def logits_of(folder, ids):
    m = files.open_model(str(folder))
    rope = llama.Rope(m.shape, m.rope_factors, len(ids), torch.device("cpu"))
    states, _ = llama.read_all(m.shape, m.weights, rope, torch.tensor([ids]))
    return states[0] @ llama.head(m.weights).T


@pytest.mark.parametrize("name", ["llama2", "llama2-linear", "llama3-tied", "llama3-untied", "mistral", "qwen2", "qwen3"])
def test_a_folder_is_read_as_transformers_reads_it(name):
    expected = json.loads((TINY / name / "expected.json").read_text())
    n = expected["n_tokens"]
    logits = torch.tensor(expected["logits"]) * expected["unit"]
    torch.testing.assert_close(logits_of(TINY / name, expected["text_tokens"][:n]), logits, rtol=0, atol=5e-4)


@pytest.mark.parametrize("full, twin", [("llama3-tied", "llama3-tied-twin"), ("qwen3", "qwen3")])
def test_a_folders_twin_is_a_folder_that_serves(tmp_path, recipe, documents, full, twin):
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": json.loads((TINY / full / "expected.json").read_text())["text"]}))
    out = tmp_path / "out"
    trained = run(tmp_path, recipe(type="f32", head_type="f32"), documents, "out", "--stop-after", "0",
                  full=TINY / full, twin=TINY / twin)
    assert trained.returncode == 0, trained.stderr

    def measures(twin):
        return json.loads(overfill(
            "eval", "--model", TINY / full, "--pruned", twin, "--system", "overfill", "--task", "nll", "--data", text,
            "--prompt-tokens", 16, "--score-tokens", 64, "--pruned-activations", 12, "--json"))["metric"]

    assert measures(out) == measures(TINY / twin)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_models_that_are_no_pair_are_refused_by_name(tmp_path, recipe, documents):
    write_model(tmp_path / "full.gguf", 1)
    write_model(tmp_path / "twin.gguf", 2)
    r = files.Model(str(tmp_path / "twin.gguf"))
    r.shape.kv_heads = KV_HEADS * 2
    with pytest.raises(ValueError, match="kv_heads is 4"):
        files.check_pair(files.Model(str(tmp_path / "full.gguf")), r)
    done = run(tmp_path, recipe(type="q9_0"), documents, "x.gguf")
    assert done.returncode == 1 and "type: q9_0" in done.stderr


def test_what_is_read_is_not_written_over(tmp_path, recipe, documents):
    write_model(tmp_path / "full.gguf", 1)
    write_model(tmp_path / "twin.gguf", 2)
    for name in ("full.gguf", "twin.gguf"):
        before = (tmp_path / name).read_bytes()
        done = run(tmp_path, recipe(), documents, name)
        assert done.returncode == 1 and f"--out: {tmp_path / name}" in done.stderr
        assert (tmp_path / name).read_bytes() == before


def stories(tmp_path):
    source = SHARED / "models"
    if not (source / "stories260K.bin").exists():
        pytest.skip(f"{source}: no stories260K.bin")
    if not PROGRAM.exists():
        pytest.skip(f"{PROGRAM} is not built")
    full = tmp_path / "full.gguf"
    subprocess.run([sys.executable, str(ROOT / "tests/llama_server/stories.py"),
                    str(source / "stories260K.bin"), str(source / "tok512.bin"), str(full)], check=True)
    texts = tmp_path / "texts.jsonl"
    begins = ["Once upon a time", "One day", "Lily", "Tom", "There was", "The dog", "Ben and Mia", "A girl"]
    with open(texts, "w", encoding="utf-8") as out:
        for seed in range(10):
            for begin in begins:
                text = overfill("generate", "--model", full, "--seed", seed, "--temperature", 1,
                                "--max-tokens", 200, "--raw", begin)
                out.write(json.dumps({"text": begin + text}) + "\n")
    return full, texts


def test_a_healed_twin_writes_better(tmp_path, recipe):
    full, texts = stories(tmp_path)
    overfill("prune", "--model", full, "--method", "minitron", "--hidden", 32, "--mlp", 96, "--type", "f32",
             "--calibration", texts, "--out", tmp_path / "twin.gguf")
    lines = texts.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[8:]))
    (tmp_path / "held.jsonl").write_text("".join(lines[:8]))
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text(overfill("tokenize", "--model", full, "--data", tmp_path / "train.jsonl"))
    options = {"steps": 120, "rate": 3e-3, "type": "q8_0", "head_type": "q8_0", "data": {
        "min_tokens": 100, "max_tokens": 160, "batch_tokens": 1600, "min_prompt": 16, "max_prompt": 48,
        "min_answer": 16}}
    done = run(tmp_path, recipe(**options), str(tokens), "healed.gguf")
    assert done.returncode == 0, done.stderr

    def kl(twin):
        return json.loads(overfill(
            "eval", "--model", full, "--pruned", tmp_path / twin, "--system", "overfill", "--task", "nll",
            "--data", tmp_path / "held.jsonl", "--prompt-tokens", 32, "--score-tokens", 64, "--json"))[
                "metric"]["kl"]

    before, after = kl("twin.gguf"), kl("healed.gguf")
    assert after < 0.6 * before, (before, after)


def test_documents_are_held_back_or_trained_on():
    documents = [([i], 0) for i in range(48)]
    trained, held = data.hold_back(documents, 16)
    assert len(held) == 16 and sorted(trained + held) == documents
    trained, held = data.hold_back(documents[:6], 16)
    assert len(trained) == len(held) == 3


def test_scratch_tells_better_from_worse_and_from_noise():
    def row(name, stories, shift):
        return {"name": name, "stories": stories, "answer": {"rows": [
            {"line": i, "nll": 1 + i % 3 + (shift if shift else (-1) ** i)} for i in range(40)]}}

    def words(**shifts):
        found = [row("healed (kl), OverFill", 10, shifts["healed"]),
                 *(row("from random weights, alone", n, shifts["random"]) for n in (10, 40))]
        return scratch.judgement(found).splitlines()

    assert "is better than random weights trained on 1 times the 10" in words(healed=0.1, random=0.2)[0]
    assert "is worse than random weights trained on 4 times the 10" in words(healed=0.2, random=0.1)[1]
    assert "is not to be told from" in words(healed=0, random=1e-9)[0]
