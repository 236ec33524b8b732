"""Training a twin on the full model's KV. See `--help`."""

import argparse
import json
import math
import os
import sys
import time

import torch
import torch.distributed as dist
import yaml

import data
import files
import grid
import loss
import model as llama
from curve import draw
from twin import Twin

HELD = 16  # documents that are never trained on
POSITIONS = 4096
REPEATS = {"allowed", "multiplier", "base", "most"}


def has_fast_bf16(device):
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        flags = info.read()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def read_recipe(path, overrides):
    with open(path, encoding="utf-8") as f:
        recipe = yaml.safe_load(f)
    for key, value in overrides.items():
        if value is not None:
            recipe[key] = value
    if recipe["objective"] not in ("kl", "ce", "kl+hidden"):
        raise ValueError(f"objective: {recipe['objective']}, expected kl, ce or kl+hidden")
    if recipe["condition"] not in ("overfill", "alone"):
        raise ValueError(f"condition: {recipe['condition']}, expected overfill or alone")
    repeats = recipe.get("repeats")
    if repeats is not None and (set(repeats) != REPEATS or repeats["allowed"] < 1):
        raise ValueError(f"repeats: {repeats}, expected {', '.join(sorted(REPEATS))}, and allowed of 1 or more")
    if repeats and recipe["objective"] == "ce":
        raise ValueError("repeats: objective ce learns no distribution of the full model's that they could change")
    for key in ("type", "head_type"):
        if not grid.is_known(recipe[key]) or recipe[key] == "bf16":
            raise ValueError(f"{key}: {recipe[key]}, expected one of {', '.join(grid.GRIDS)}, f16, f32")
    return recipe


class Trainer:
    def __init__(self, full, start, recipe, device, dtype):
        if recipe["objective"] == "kl+hidden" and full.shape.hidden != start.shape.hidden:
            raise ValueError("objective: kl+hidden compares states, which wants equal hidden sizes")
        self.recipe, self.device = recipe, device
        self.full_shape = full.shape
        self.full = {n: w.to(device, torch.float32 if w.dim() == 1 else dtype)
                     for n, w in full.weights.items()}
        self.rope = llama.Rope(full.shape, full.rope_factors, POSITIONS, device)
        self.twin = Twin(start, recipe["type"], recipe["head_type"], device, dtype)
        self.optimizer = torch.optim.AdamW(
            self.twin.parameter_groups(recipe["rate"], recipe["scale_rate"]),
            betas=tuple(recipe["betas"]), weight_decay=recipe["weight_decay"])
        self.step = 0

    def run(self, batch, objective):
        """Sum of the loss over the batch's targets, and the sums to report."""
        tokens, starts, counts = batch.tokens, batch.starts, batch.counts
        with torch.no_grad():
            states, kv = llama.read_all(self.full_shape, self.full, self.rope, tokens)
        alone = self.recipe["condition"] == "alone"
        begins = torch.zeros_like(starts) if alone else starts
        n = int((counts - begins).max())
        own = torch.arange(n, device=tokens.device)
        at = begins[:, None] + own  # positions of the twin's rows
        clipped = at.clamp(max=tokens.shape[1] - 1)
        is_target = (at >= starts[:, None]) & (at < counts[:, None] - 1)
        mine = llama.read_behind(self.twin.shape, self.twin.seen, self.rope, tokens.gather(1, clipped),
                                 begins, kv, self.recipe["recompute"])
        theirs = states.gather(1, clipped[:, :, None].expand(-1, -1, states.shape[2]))[is_target]
        following = tokens.gather(1, (clipped + 1).clamp(max=tokens.shape[1] - 1))[is_target]
        mine = mine[is_target]
        value, sums = loss.vocabulary_loss(mine, llama.head(self.twin.seen), theirs, llama.head(self.full),
                                           following, objective.split("+")[0],
                                           self.penalties(batch, begins, is_target))
        if objective == "kl+hidden":
            value = value + (mine.float() - theirs.float()).square().mean(1).sum()
        return value, sums

    def penalties(self, batch, begins, is_target):
        """Of tokens that would go on with a repeat in an answer, as the sampler called DRY has them: behind `allowed`
        tokens or more that are the same, multiplier * base ** (how many more), and `most` at the most."""
        if not batch.repeats.numel():
            return None
        options = self.recipe["repeats"]
        row, at, token, length = batch.repeats.T
        place = at - begins[row]
        counted = is_target[row, place]
        number = (is_target.flatten().cumsum(0) - 1).view_as(is_target)[row, place]  # among all targets
        amounts = options["multiplier"] * options["base"] ** (length - options["allowed"]).double()
        return loss.Penalties(number[counted], token[counted], amounts[counted].clamp(max=options["most"]).float())

    def set_rate(self):
        r, steps = self.recipe, self.recipe["steps"]
        warm = max(1, round(r["warmup"] * steps))
        share = (self.step + 1) / warm if self.step < warm else (
            r["final_rate"] + (1 - r["final_rate"]) * 0.5 *
            (1 + math.cos(math.pi * (self.step - warm) / max(1, steps - warm))))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def train_step(self, batches):
        self.twin.see()
        n = sum(b.n_targets for b in batches)
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            value, part = self.run(batch.to(self.device), self.recipe["objective"])
            (value / n).backward()
            sums += part
        self.twin.pull()
        self.share_gradients()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe["clip"])
        self.set_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return sums / n, n, float(norm)

    def share_gradients(self):
        """The mean over all processes of torchrun, each of which has batches of its own."""
        if not dist.is_initialized():
            return
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

    @torch.no_grad()
    def measure(self, batches):
        self.twin.see(needs_grad=False)
        sums, n = torch.zeros(3, dtype=torch.float64), 0
        for batch in batches:
            sums += self.run(batch.to(self.device), "kl")[1]
            n += batch.n_targets
        return dict(zip(("kl", "agree", "nll"), (sums / n).tolist()))

    def save(self, path):
        torch.save({"step": self.step, "recipe": self.recipe, "twin": self.twin.state(),
                    "optimizer": self.optimizer.state_dict()}, path + ".part")
        os.replace(path + ".part", path)

    def load(self, path):
        state = torch.load(path, map_location="cpu")
        if state["recipe"] != self.recipe:
            raise ValueError(f"{path}: it was made by another recipe; --fresh begins anew")
        self.step = state["step"]
        self.twin.load(state["twin"])
        self.optimizer.load_state_dict(state["optimizer"])

    def go_on_from(self, path):
        """Weights, scales (relative to the twin's first ones) and the optimiser's moments of a run that ended;
        steps and rates are this recipe's."""
        state = torch.load(path, map_location="cpu")
        for key in ("type", "head_type"):
            if state["recipe"][key] != self.recipe[key]:
                raise ValueError(f"{path}: {key} {state['recipe'][key]}, this recipe has {self.recipe[key]}")
        self.twin.load(state["twin"])
        self.optimizer.load_state_dict({**state["optimizer"],
                                        "param_groups": self.optimizer.state_dict()["param_groups"]})


class Log:
    """A line of JSON for each measure and step, and one on the terminal now and then."""

    def __init__(self, path, is_new):
        self.file = open(path, "w" if is_new else "a", encoding="utf-8")
        self.started, self.tokens, self.first = time.monotonic(), 0, None

    def step(self, trainer, sums, n, norm):
        if self.first is None:
            self.first = trainer.step - 1
        self.tokens += n
        speed = self.tokens / (time.monotonic() - self.started)
        row = {"step": trainer.step, "kl": sums[0].item(), "agree": sums[1].item(),
               "nll": sums[2].item(), "norm": norm, "tokens": n}
        self.put(row)
        left = (time.monotonic() - self.started) * (trainer.recipe["steps"] - trainer.step) / (
            trainer.step - self.first)
        if trainer.step % 5 == 0 or trainer.step == 1:
            print(f"step {trainer.step}/{trainer.recipe['steps']}: KL {row['kl']:.4f}, agreement "
                  f"{100 * row['agree']:.1f} %, {speed:.0f} tokens/s, {left / 60:.0f} min left",
                  file=sys.stderr)

    def held(self, trainer, values):
        self.put({"step": trainer.step, "held": values})
        print(f"step {trainer.step}: held back: KL {values['kl']:.4f}, agreement "
              f"{100 * values['agree']:.2f} %", file=sys.stderr)

    def put(self, row):
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


def parse(argv):
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser(prog="scripts/heal/run", description="Trains a twin to write as the "
                                "full model does, on the full model's KV of the prompt.")
    p.add_argument("--full", required=True, metavar="FILE", help="the full model: GGUF or a Hugging Face folder")
    p.add_argument("--twin", required=True, metavar="FILE", help="the twin to begin with, the same; best in f16")
    p.add_argument("--out", required=True, metavar="FILE", help="where the healed twin goes; a folder if --twin is one")
    p.add_argument("--data", required=True, nargs="+", metavar="FILE",
                   help="rows of `overfill tokenize`")
    p.add_argument("--recipe", default=os.path.join(here, "recipes", "overfill.yaml"), metavar="FILE")
    p.add_argument("--steps", type=int)
    p.add_argument("--rate", type=float)
    p.add_argument("--type")
    p.add_argument("--head-type", dest="head_type")
    p.add_argument("--objective")
    p.add_argument("--condition")
    p.add_argument("--seed", type=int)
    p.add_argument("--stop-after", type=int, metavar="N", help="save and end after so many steps")
    p.add_argument("--measure-every", type=int, default=25, metavar="N")
    p.add_argument("--save-every", type=float, default=300, metavar="SECONDS")
    p.add_argument("--after", metavar="FILE", help="go on from OUT.state of another run of the same "
                   "--twin, as a next stage with a recipe and data of its own")
    p.add_argument("--compile", action="store_true",
                   help="compile the loss, which takes a C++ compiler and PyTorch 2: faster on a CPU")
    p.add_argument("--fresh", action="store_true", help="begin anew, whatever OUT.state holds")
    p.add_argument("--threads", type=int)
    return p.parse_args(argv)


def train(args):
    if os.path.realpath(args.out) in map(os.path.realpath, (args.full, args.twin)):
        raise ValueError(f"--out: {args.out} is what is read, and read again to go on; another name expected")
    recipe = read_recipe(args.recipe, {k: getattr(args, k) for k in (
        "steps", "rate", "type", "head_type", "objective", "condition", "seed")})
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(recipe["seed"])
    fast = recipe["precision"] == "bf16" or (recipe["precision"] == "auto" and has_fast_bf16(device))
    full, start = files.open_model(args.full), files.open_model(args.twin)
    files.check_pair(full, start)
    trainer = Trainer(full, start, recipe, device, torch.bfloat16 if fast else torch.float32)
    full.weights = start.weights = None  # the trainer has its own
    documents = data.read_documents(args.data)
    documents, held = data.hold_back(documents, HELD)
    held = data.held_batches(held, recipe["data"], HELD)
    batches = data.Batches(documents, recipe["data"], recipe["seed"],
                           (recipe.get("repeats") or {}).get("allowed", 0))
    state = args.out + ".state"
    resumes = os.path.exists(state) and not args.fresh
    if resumes:
        trainer.load(state)
    elif args.after:
        trainer.go_on_from(args.after)
    if args.compile:
        loss.compare = torch.compile(loss.compare, dynamic=True)
    log = Log(args.out + f".curve{rank or ''}.jsonl", not resumes)
    end = recipe["steps"] if args.stop_after is None else min(recipe["steps"], args.stop_after)
    if not resumes:
        log.held(trainer, trainer.measure(held))
    saved = time.monotonic()
    while trainer.step < end:
        first = (trainer.step * world + rank) * recipe["micro_batches"]
        log.step(trainer, *trainer.train_step(
            [batches[first + i] for i in range(recipe["micro_batches"])]))
        if trainer.step % args.measure_every == 0 or trainer.step == end:
            log.held(trainer, trainer.measure(held))
        if rank == 0 and (time.monotonic() - saved > args.save_every or trainer.step == end):
            trainer.save(state)
            saved = time.monotonic()
    if rank == 0:
        start.write(args.out, trainer.twin.tensors(), {
            "overfill.healed": json.dumps({**recipe, "steps": trainer.step}, sort_keys=True)})
        draw(args.out + ".curve.jsonl", args.out + ".curve.svg")


def main(argv=None):
    args = parse(argv)
    try:
        train(args)
    except (ValueError, OSError) as e:
        sys.exit(f"heal: {e}")


if __name__ == "__main__":
    main()
