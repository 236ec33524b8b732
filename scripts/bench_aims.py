"""The table of aims for pairs at full size in docs/PERFORMANCE.md, from the last figures of scripts/bench-peers (of the
small model and of the pair's full model) and scripts/bench-pairs, each of which calls this when it has measured.

Ratios to a peer are medians over rounds in turn. Where a row joins two scripts it says so: the twin beside a peer's full
model is the twin beside our full model in one run, times our full model beside the peer's in the other."""
import json
import pathlib
import statistics

import document

DOCUMENT = pathlib.Path("docs/PERFORMANCE.md")
PEERS = pathlib.Path(".cache/peers")
PAIRS = pathlib.Path(".cache/pairs/results.json")


class Peers:
    """A model's figures of scripts/bench-peers."""

    def __init__(self, path: pathlib.Path):
        self.result = json.loads(path.read_text())
        self.ours = self.result["peers"]["overfill"]["rounds"]

    def best(self, stage: str) -> tuple:
        """The peer whose speed comes nearest to ours or passes it: (ours over its, its name)."""
        ratios = [(statistics.median(a[stage] / b[stage] for a, b in zip(self.ours, peer["rounds"])), name)
                  for name, peer in self.result["peers"].items() if name != "overfill" and not peer["why_not"]]
        return min(ratios, default=None)

    def share_of_int8(self) -> float:
        return share_of_int8(self.result["products"], [r["prefill"] for r in self.ours], [r["machine"] for r in self.ours])


def share_of_int8(products: int, speeds: list, machines: list) -> float:
    """Of the peak, what a prefill multiplies: products of a token, tokens a second; each round has its own peak."""
    return statistics.median(2e-9 * products * tok_s / machine["int8_gops"] for tok_s, machine in zip(speeds, machines))


def seen(value: float, aim: float, unit: str = "") -> str:
    text = f"{value:.0f} %" if unit == "%" else f"{value:.2f}"
    return text if value >= aim else f"{text}: not reached"


def prefill_rows(peers: Peers, title: str, ratio_aim: float, share_aim: int) -> list:
    ratio, share = peers.best("prefill"), 100 * peers.share_of_int8()
    rows = [[f"prefill 512, {title}", f"{share_aim} % of the int8 peak", seen(share, share_aim, "%")]]
    if ratio:
        rows.insert(0, [f"prefill 512, {title}", f"{ratio_aim:g} times the best peer", f"{seen(ratio[0], ratio_aim)} ({ratio[1]})"])
    return rows


def peak(speed: dict, name: str) -> float:
    return statistics.median(m[name] for m in speed["machine"])


def share_of_memory(speed: dict, mode: str) -> float:
    """Of its speed, what a model reads in decode of one sequence; each round has its own peak."""
    return statistics.median(1e-9 * tok_s * speed["model_bytes"][mode] / machine["ram_gbs"]
                             for tok_s, machine in zip(speed["decode"][f"{mode}-1"], speed["machine"]))


def pair_rows(speed: dict, peers) -> list:
    medians = {name: statistics.median(values) for name, values in speed["decode"].items()}
    share = {mode: 100 * share_of_memory(speed, mode) for mode in ("full", "pruned")}
    gain = {n: medians[f"pruned-{n}"] / medians[f"full-{n}"] for n in (1, 16)}
    rows = [["decode 1, full model, 4-bit", "85 % of the memory's speed", seen(share["full"], 85, "%")]]
    if peers and (best := peers.best("decode-1")):
        rows.append(["decode 1, full model, 4-bit", "not below the best peer", f"{seen(best[0], 1)} ({best[1]})"])
    rows += [["decode 1, twin, 4-bit", "2.2 times our full model", seen(gain[1], 2.2)],
             ["decode 1, twin, 4-bit", "80 % of the memory's speed", seen(share["pruned"], 80, "%")],
             ["decode 16, twin", "2 times our full model", seen(gain[16], 2)]]
    if peers and (best := peers.best("decode-16")):
        rows.append(["decode 16, twin", "2.5 times the best peer's full model",
                     f"{seen(gain[16] * best[0], 2.5)} ({best[1]}; of two runs)"])
    return rows


def median_step(arrivals: list) -> float:
    """Seconds between tokens of one answer, behind the second."""
    return statistics.median(b - a for a, b in zip(arrivals[1:], arrivals[2:]))


def hand_over(story: dict) -> float:
    """Seconds that the second token, the first of the twin, took beyond a step: the median of the twin's answers."""
    return statistics.median(a[1] - a[0] - median_step(a) for a in [story["pruned"], *story["hand_overs"]])


def story_rows(story: dict) -> list:
    extra = 1e3 * hand_over(story)
    what = f"1,000 tokens read, {story['tokens']} written"
    return [[what, "hand-over under 1 ms", f"{extra:+.1f} ms{'' if extra < 1 else ': not reached'}"],
            [what, "prefill time of the full model", f"{story['pruned'][0] / story['full'][0]:.2f} times"]]


def write() -> None:
    """Nothing while a part is missing."""
    if not PAIRS.exists():
        return
    pairs = json.loads(PAIRS.read_text())
    if "speed" not in pairs["stages"]:
        return
    what, speed = pairs["what"], pairs["stages"]["speed"]
    found = {path.stem.removeprefix("results-"): Peers(path) for path in sorted(PEERS.glob("results-*.json"))}
    large = found.pop(f"{what['full']}-{what['type']}", None)
    rows = []
    for name, peers in found.items():
        rows += prefill_rows(peers, name, 2, 55)
    if large:
        rows += prefill_rows(large, what["full"], 1.3, 60)
    rows += pair_rows(speed, large)
    if "story" in pairs["stages"]:
        rows += story_rows(pairs["stages"]["story"])
    versions = sorted({f"{name} {peer['rounds'][0]['version']}" for peers in [*found.values(), *([large] if large else [])]
                       for name, peer in peers.result["peers"].items() if peer["rounds"]})
    text = (f"{what['cpu']}, {what['cpus']} CPUs, {pairs['date']}: int8 {peak(speed, 'int8_gops'):.0f} GOP/s, memory "
            f"{peak(speed, 'ram_gbs'):.1f} GB/s. Pair: {what['full']} and {what['twin']}, {what['type'].upper()}, random weights.\n"
            f"{'; '.join(versions) or 'Peers not measured'}.\n\n" + document.table(["work", "aim", "seen"], rows))
    document.put(DOCUMENT, "scripts/bench-pairs and scripts/bench-peers", text, "Performance")


if __name__ == "__main__":
    write()
