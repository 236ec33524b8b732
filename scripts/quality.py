"""The runs behind scripts/quality: makes the twins, asks `overfill eval` for every system and task, and keeps each
answer in a file of its own, named by what it depends on. Not the document: quality_report.py writes that."""
import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import quality_report

PROGRAM = os.environ.get("OVERFILL_BINARY", "build/cli/overfill")
SIZES = ((320, 832), (432, 1152), (512, 1280))
METHODS = ("minitron", "reconstruct")
PROMPT_LENGTHS = (16, 32, 64, 128, 256, 384)
PROMPT_SCORE = 128  # tokens scored behind each of them


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    task: str
    data: str
    n: int
    options: tuple = ()


# The rows are what half an hour on two cores allows; nll takes every document that is long enough.
TASKS = (
    Task("nll", "nll", "train/t0.valid.jsonl", 48, ("--prompt-tokens", "128", "--score-tokens", "384")),
    Task("lambada", "lambada", "eval/lambada_openai.jsonl", 200),
    Task("boolq", "choices", "eval/boolq.jsonl", 100),
    Task("piqa", "choices", "eval/piqa.jsonl", 200),
    Task("arc_easy", "choices", "eval/arc_easy.jsonl", 200),
    Task("arc_challenge", "choices", "eval/arc_challenge.jsonl", 200),
)
# Trained twins write too: what comes of it is asked beside what they would have said.
TRAINED_TASKS = (*TASKS, Task("generate", "generate", "train/t0.valid.jsonl", 200, ("--score-tokens", "64")))
N_PROMPT_DOCUMENTS = 16
FORTUNES = pathlib.Path("/usr/share/games/fortunes")  # Debian's package fortunes: sayings, verses, passages
CALIBRATION_TOKENS = 65536  # of the twins in the table: what `overfill prune` takes by itself
CUT_TOKENS = 16384  # enough to tell which channels are large
OWN_CALIBRATION_TOKENS = 32768  # of quickstart's twin
SHIPPED_TYPE = "q4_0"  # the shipped twin's
ANSWERS = Task("answers", "answers", "prompts/mt_bench.jsonl", 80)


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def hash_of(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while part := f.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:16]


class Work:
    """The folder of twins and answers."""

    def __init__(self, args):
        self.model, self.shared, self.fresh, self.quick = args.model, args.shared, args.fresh, args.quick
        self.scale, self.healed = args.scale, args.healed
        self.shipped, self.quickstart, self.own_text = args.shipped, args.quickstart, args.own_text.split()
        self.calibration_tokens = min(args.tokens, 16384) if args.quick else args.tokens
        self.folder = pathlib.Path(".cache/quality") / ("quick" if args.quick else "")
        (self.folder / "rows").mkdir(parents=True, exist_ok=True)
        self.model_hash = hash_of(self.model)
        self.pruner = self.run(["prune", "--version"])[0].strip()
        self.hashes = {}
        self.cpu_seconds = 0.0

    def n_of(self, n: int) -> int:
        return max(2, round(n * self.scale / (12 if self.quick else 1)))

    def run(self, command: list, is_long=False) -> tuple:
        """Its output, wall-clock and CPU seconds. is_long: its progress is shown."""
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run([PROGRAM, *map(str, command)], stdout=subprocess.PIPE,
                              stderr=None if is_long else subprocess.PIPE, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError((done.stderr or f"overfill {command[0]} failed").strip().splitlines()[-1])
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done.stdout, time.monotonic() - begin, cpu

    def twin(self, hidden: int, mlp: int, method: str) -> dict:
        calibration = self.shared / "data/train/t0.train.jsonl.gz"
        tokens = min(self.calibration_tokens, CUT_TOKENS) if method == "minitron" else self.calibration_tokens
        return self.make_twin(f"twin-{hidden}-{mlp}-{method}", method, calibration,
                              ["--method", method, "--hidden", hidden, "--mlp", mlp, "--type", "q8_0",
                               "--tokens", tokens])

    def shipped_twin(self) -> dict:
        self.hashes[self.shipped] = hash_of(self.shipped)
        return {"path": self.shipped, "method": "shipped", "shape": self.shape_of(self.shipped)}

    def others(self) -> list:
        """Twins of 4-bit weights: the one that this repository ships, and the full model rounded to its type."""
        rounded = self.make_twin("twin-rounded", "rounded", None, ["--method", "minitron", "--type", SHIPPED_TYPE])
        return [self.shipped_twin(), rounded]

    def trained(self) -> list:
        """The twins of --healed. One that was trained to read the prompt itself is measured so."""
        found = []
        for path in self.healed:
            self.hashes[path] = hash_of(path)
            said = json.loads(self.run(["inspect", path, "--json"])[0])
            if "overfill.healed" not in said["metadata"]:
                sys.exit(f"error: {path}: scripts/heal/run did not make it")
            recipe = json.loads(said["metadata"]["overfill.healed"])
            is_alone = recipe["condition"] == "alone"
            twin = {"path": path, "system": "pruned" if is_alone else "overfill", "recipe": recipe,
                    "method": quality_report.trained_name(recipe),
                    "start": said["metadata"].get("overfill.prune.method", "reconstruct"),
                    "shape": [said["model"]["hidden"], said["model"]["mlp"]]}
            if any((twin["method"], twin["shape"]) == (t["method"], t["shape"]) for t in found):
                sys.exit(f"error: {path}: {twin['method']} at these widths is there already; one of each is expected")
            found.append(twin)
        return found

    def make_twin(self, name: str, method: str, calibration, options: list) -> dict:
        """calibration None: nothing is cut."""
        out = self.folder / f"{name}.gguf"
        command = ["prune", "--model", self.model, "--out", out, *options]
        command += ["--calibration", calibration] if calibration else []
        recipe = json.dumps([str(part) for part in command] +
                            [self.model_hash, f"pruner {self.pruner}", calibration and hash_of(calibration)])
        note = out.with_suffix(".json")
        kept = json.loads(note.read_text()) if note.exists() and out.exists() else {}
        if self.fresh or kept.get("recipe") != recipe:
            say(f"prune {name}")
            _, wall, cpu = self.run(command, is_long=True)
            kept = {"recipe": recipe, "seconds": wall, "cpu_seconds": cpu, "hash": hash_of(out),
                    "bytes": out.stat().st_size, "shape": self.shape_of(out)}
            note.write_text(json.dumps(kept))
        self.hashes[out] = kept["hash"]
        return {"path": out, "method": method, **{k: kept[k] for k in ("seconds", "cpu_seconds", "bytes", "shape")}}

    def shape_of(self, path: pathlib.Path) -> list:
        model = json.loads(self.run(["inspect", path, "--json"])[0])["model"]
        return [model["hidden"], model["mlp"]]

    def evaluate(self, title: str, task: Task, system: str, twin=None, options=(), full_rows=None) -> dict:
        data, n = self.shared / "data" / task.data, self.n_of(task.n)
        command = ["eval", "--model", self.model, "--task", task.task, "--system", system, "--data", data, "--limit", n,
                   "--json", "--rows", *task.options, *options]
        if twin:
            command += ["--pruned", twin]
        depends = [str(part) for part in command] + [self.model_hash, self.hashes.get(twin, "")]
        kept = self.folder / "rows" / (hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:24] + ".json")
        if kept.exists() and not self.fresh:
            return json.loads(kept.read_text())
        if full_rows and system != "full":
            command += ["--full-rows", full_rows]
        try:
            out, wall, cpu = self.run(command)
        except RuntimeError as error:
            if "full-rows" not in str(error):
                raise
            full_rows.unlink()
            out, wall, cpu = self.run(command)
        answer = {**json.loads(out), "wall_seconds": wall, "cpu_seconds": cpu, "title": title}
        self.cpu_seconds += cpu
        kept.write_text(json.dumps(answer))
        say(f"{title}, {task.name}: " + ", ".join(
            f"{k} -" if v is None else f"{k} {v:.4g}" for k, v in answer["metric"].items())
            + f"; {wall:.0f} s ({cpu:.0f} s of CPU)")
        return answer


def systems_of(twins: list, others: list) -> list:
    """(title, system, twin) in the order of the table."""
    found = [("full model", "full", None)]
    pairs = [(system, twin) for twin in twins for system in ("pruned", "overfill")]
    for system, twin in pairs + [(twin.get("system", "overfill"), twin) for twin in others]:
        found.append((f"{system} {'/'.join(map(str, twin['shape']))} {twin['method']}", system, twin))
    return found


def run_table(work: Work, twins: list, others: list, tasks=TASKS) -> list:
    rows = [{"title": title, "system": system, "method": twin and twin["method"], "shape": twin and twin["shape"],
             "twin": twin and str(twin["path"]), "tasks": {},
             **({k: twin[k] for k in ("recipe", "start")} if twin and "recipe" in twin else {})}
            for title, system, twin in systems_of(twins, others)]
    for task in tasks:
        full_rows = work.folder / "full-rows.bin"
        for row in rows:
            twin = row["twin"] and pathlib.Path(row["twin"])
            row["tasks"][task.name] = work.evaluate(row["title"], task, row["system"], twin, (), full_rows)
            if row["system"] == "overfill" and task.name in ("lambada", "boolq"):
                row["tasks"][task.name + "_decoder"] = work.evaluate(
                    row["title"] + ", decoder first", task, "overfill", twin, ("--decoder-first",))
        full_rows.unlink(missing_ok=True)
    return rows


def run_prompts(work: Work, twin: dict, others: list) -> list:
    """What OverFill wins over the twin alone, by the length of the prompt; and what others reach as OverFill."""
    found = []
    for n_prompt in PROMPT_LENGTHS:
        task = Task(f"nll after {n_prompt}", "nll", TASKS[0].data, N_PROMPT_DOCUMENTS,
                    ("--prompt-tokens", str(n_prompt), "--score-tokens", str(PROMPT_SCORE)))
        full_rows = work.folder / "full-rows.bin"
        pair = {system: work.evaluate(f"{system} {twin['method']}", task, system, twin["path"], (), full_rows)
                for system in ("pruned", "overfill")}
        beside = {other["method"]: work.evaluate(f"overfill {other['method']}", task, "overfill", other["path"], (),
                                                 full_rows) for other in others}
        full_rows.unlink(missing_ok=True)
        found.append({"prompt_tokens": n_prompt, **pair, "others": beside})
    return found


def calibrations_of(work: Work) -> dict:
    """name: file. What the model writes by itself, and a Debian package's text if it is installed."""
    own = work.folder / "own.jsonl"
    if work.fresh or not own.exists():
        say("the model answers scripts/questions.txt")
        own.write_text(work.run(["generate", "--model", work.model, *work.own_text], is_long=True)[0])
    found = {"its own answers": own}
    if FORTUNES.is_dir():
        text = work.folder / "fortunes.txt"
        text.write_text("".join(path.read_text(errors="replace") for path in sorted(FORTUNES.iterdir())
                                if path.is_file() and not path.suffix))
        found["Debian's fortunes"] = text
    else:
        say(f"{FORTUNES} is missing (package fortunes): no twin calibrated on it")
    return found


def run_calibrations(work: Work) -> list:
    """quickstart's twin by each calibration: its answers as the full model sees them, and documents."""
    hidden, mlp, tensor_type = work.quickstart
    found = [{"name": "full model", "answers": work.evaluate("full model", ANSWERS, "full"), "nll": None}]
    for number, (name, path) in enumerate(calibrations_of(work).items()):
        twin = work.make_twin(f"chat-{number}", "reconstruct", path,
                              ["--hidden", hidden, "--mlp", mlp, "--type", tensor_type, "--tokens", OWN_CALIBRATION_TOKENS])
        found.append({"name": name, "seconds": twin["seconds"],
                      "answers": work.evaluate(name, ANSWERS, "overfill", twin["path"]),
                      "nll": work.evaluate(name, TASKS[0], "overfill", twin["path"])})
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/quality")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--shipped", type=pathlib.Path, required=True, help="the twin of this repository")
    parser.add_argument("--quickstart", nargs=3, required=True, help="hidden size, MLP size and type of its pruned twin")
    parser.add_argument("--own-text", required=True, help="options of the `overfill generate` that calibrates that twin")
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--healed", type=pathlib.Path, nargs="+", default=[], help="twins of scripts/heal/run")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--tokens", type=int, default=CALIBRATION_TOKENS)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


def measure(work: Work):
    """What is known so far, again after each size: whoever stops has a document of the sizes that are done."""
    twins, others = [], work.others()
    for hidden, mlp in SIZES[:1] if work.quick else SIZES:
        twins += [work.twin(hidden, mlp, method) for method in METHODS]
        yield {"twins": [{**twin, "path": str(twin["path"])} for twin in twins], "rows": run_table(work, twins, others)}
        if len(twins) == len(METHODS):
            yield {"prompts": run_prompts(work, twins[METHODS.index("reconstruct")], [])}
    if not work.quick:
        yield {"calibrations": run_calibrations(work)}


def measure_trained(work: Work):
    """The trained twins beside what the first size's were before, and beside the shipped one."""
    trained, shipped, start = work.trained(), work.shipped_twin(), work.twin(*SIZES[0], "reconstruct")
    yield {"rows": run_table(work, [start], [shipped, *trained], TRAINED_TASKS)}
    shown = [t for t in trained if quality_report.is_shown(t, start["shape"])]
    yield {"prompts": run_prompts(work, start, [*shown, shipped])}


def main() -> None:
    args = parse()
    if not (args.shared / "data").is_dir():
        sys.exit(f"error: {args.shared / 'data'} is missing; OVERFILL_SHARED names the folder of the test data")
    work = Work(args)
    results = work.folder / ("trained.json" if args.healed else "results.json")
    write = quality_report.write_trained if args.healed else quality_report.write
    folder = work.folder if work.quick else pathlib.Path("docs")
    if args.report:
        if not results.exists():
            sys.exit(f"error: {results} is missing; scripts/quality without --report makes it")
        write(json.loads(results.read_text()), folder)
        return
    begin, result = time.monotonic(), {}
    for part in (measure_trained if args.healed else measure)(work):
        result |= part
        result |= {"date": datetime.date.today().isoformat(), "model": args.model.stem,
                   "calibration_tokens": work.calibration_tokens,
                   "cut_tokens": min(work.calibration_tokens, CUT_TOKENS)}
        results.write_text(json.dumps(result))
        write(result, folder)
    say(f"{(time.monotonic() - begin) / 60:.1f} minutes, of them measuring {work.cpu_seconds / 60:.1f} minutes of CPU")


if __name__ == "__main__":
    main()
