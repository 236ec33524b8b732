"""Turns scripts/bench's samples into docs/PERFORMANCE.md and its picture. Every figure of that
document comes from here or from bench_aims.py.
"""
import json
import pathlib
import statistics
import sys

import document

DOCUMENT = pathlib.Path("docs/PERFORMANCE.md")
CHART = document.picture(pathlib.Path("docs/performance.svg"))
# stage of the document: (title, stage of llama.cpp, our aim as a ratio)
STAGES = (
    ("prefill", "prefill 512 tokens", "prefill", 4),
    ("full-1", "decode, 1 sequence, full model", "decode-1", 1.5),
    ("pruned-1", "decode, 1 sequence, twin 320/832", "decode-1", 4),
    ("full-4", "decode, 4 sequences, full model", "decode-4", None),
    ("pruned-4", "decode, 4 sequences, twin 320/832", "decode-4", None),
    ("full-16", "decode, 16 sequences, full model", "decode-16", None),
    ("pruned-16", "decode, 16 sequences, twin 320/832", "decode-16", 10),
    ("full-64", "decode, 64 sequences, full model", None, None),
    ("pruned-64", "decode, 64 sequences, twin 320/832", None, None),
    ("coarse prefill", "prefill 512 tokens, `--activations 8`", "prefill", None),
    ("coarse full-1", "decode, 1 sequence, full model, `--activations 8`", "decode-1", None),
    ("coarse full-16", "decode, 16 sequences, full model, `--activations 8`", "decode-16", None),
)
BINDS = {"int8": "integer products", "fp32": "float products", "bf16": "bf16 products", "ram": "reading memory", "l3": "reading L3"}


def our_stage(pair: dict, stage: str) -> dict:
    report = pair["coarse" if stage.startswith("coarse ") else "ours"]
    stage = stage.removeprefix("coarse ")
    if stage == "prefill":
        return report["prefill"]
    model, batch = stage.split("-")
    return next(row for row in report["decode"] if row["model"] == model and row["batch"] == int(batch))


def median_of(pairs: list, pick) -> float:
    return statistics.median(pick(pair) for pair in pairs)


def stage_row(pairs: list, stage: str, theirs: str) -> dict:
    """Medians over the pairs; the ratio is the median of the pairs' ratios, which what else the machine does
    disturbs less than it disturbs the speeds."""
    row = {
        "ours": median_of(pairs, lambda pair: our_stage(pair, stage)["tok_s"]),
        "share": median_of(pairs, lambda pair: our_stage(pair, stage)["share"]),
        "limit": median_of(pairs, lambda pair: our_stage(pair, stage)["limit_tok_s"]),
        "binds": statistics.mode(our_stage(pair, stage)["binds"] for pair in pairs),
    }
    if theirs:
        types = set(pairs[0]["theirs"]).intersection(*(pair["theirs"] for pair in pairs))
        row["type"] = max(types, key=lambda t: median_of(pairs, lambda pair: pair["theirs"][t][theirs]))
        row["theirs"] = median_of(pairs, lambda pair: pair["theirs"][row["type"]][theirs])
        row["ratio"] = median_of(
            pairs, lambda pair: our_stage(pair, stage)["tok_s"] / pair["theirs"][row["type"]][theirs])
    return row


def verdict(ratio: float, aim) -> str:
    return "-" if aim is None else f"{aim:g}: " + ("reached" if ratio >= aim else "not reached")


def speeds(rows: dict) -> str:
    lines = []
    for stage, title, theirs, aim in STAGES:
        row = rows[stage]
        peer = [f"{row['theirs']:.0f} ({row['type']})", f"{row['ratio']:.2f}", verdict(row["ratio"], aim)] if theirs else [
            "-", "-", "-"]
        lines.append([title, f"{row['ours']:.0f}", *peer, f"{row['limit']:.0f}", f"{100 * row['share']:.0f} %",
                      BINDS[row["binds"]]])
    return document.table(["stage", "overfill, tokens/s", "llama.cpp, best type", "ratio", "aim", "limit here",
                           "share of it", "what binds"], lines)


def seconds_row(title: str, measured: dict, aim) -> list:
    ours, theirs = statistics.median(measured["ours"]), statistics.median(measured["theirs"])
    ratio = statistics.median(t / o for o, t in zip(measured["ours"], measured["theirs"]))
    return [title, f"{ours:.2f}", f"{theirs:.2f} ({measured['weights']})", f"{ratio:.2f}", verdict(ratio, aim)]


def waits(result: dict) -> str:
    return document.table(["wait", "overfill, s", "llama-server, s", "ratio", "aim"], [
        seconds_row("first token of a prompt of 2,000 tokens", result["ttft"], 4),
        seconds_row("start of the program to its first token", result["load"], None),
    ])


def peaks(pairs: list) -> str:
    first = pairs[0]["ours"]["machine"]
    names = (("int8", "int8_gops", "GOP/s"), ("int8 x 4 bits", "int4_gops", "GOP/s"), ("int16", "int16_gops", "GOP/s"),
             ("fp32", "fp32_gflops", "GFLOP/s"), ("bf16", "bf16_gflops", "GFLOP/s"))
    rows = []
    for title, key, unit in names:
        value = median_of(pairs, lambda pair: pair["ours"]["machine"][key])
        rows.append([title, f"{value:.0f} {unit}" if value else "no instruction", first[key.split("_")[0] + "_with"]])
    for title, key in (("read L3", "l3_gbs"), ("read memory", "ram_gbs")):
        rows.append([title, f"{median_of(pairs, lambda pair: pair['ours']['machine'][key]):.1f} GB/s", ""])
    return document.table(["peak of all threads", "measured", "with"], rows)


def types_table(pairs: list) -> str:
    stages = ("prefill", "decode-1", "decode-4", "decode-16")
    rows = []
    for weights, speeds_of_type in pairs[0]["theirs"].items():
        rows.append([weights] + [f"{speeds_of_type[stage]:.0f}" for stage in stages])
    return document.table(["llama.cpp's type, first pair", "prefill 512", "decode 1", "decode 4", "decode 16"], rows)


def kinds_table(kinds: list) -> str:
    rows = [[kind["title"], f"{kind['kl']:.5f}", f"{100 * kind['agree']:.1f} %"] for kind in kinds]
    return document.table(["SmolLM2-135M-Instruct, Q4_1, held as", "KL to float32, nats a token", "same likeliest token"], rows)


def measured_text(result: dict, rows: dict) -> str:
    m, pairs = result["machine"], result["pairs"]
    kernels = pairs[0]["ours"]["machine"]["kernels"]
    priority = "" if m["policy"] == 0 else (
        " Other work ran on the machine; both programs ran at real-time priority, above it.")
    return f"""{m['cpu']}, {m['cpus']} CPUs, {m['memory_gb']:.1f} GB of memory, {m['system']}, Linux {m['kernel']};
overfill {m['overfill']} with its {kernels} kernels; llama.cpp {m['llama']}, native build, {m['cpus']} threads. {result['date']},
{len(pairs)} pairs in turn, medians. Load of the machine before: {m['load_before']:.2f}.{priority} The model is SmolLM2-135M-Instruct, Q4_1; its
twin is 320 wide with 832 MLP channels, Q4_1. llama.cpp runs the full model in the type that is its best in the row.

{speeds(rows)}

{waits(result)}

The share is of the limit that binds: the time that integer and float products take at the peaks below, or that
the weights and keys take to be read, whichever is longer. Our activations have 12 bits, and their products count as two of int8; a twin's
have 8, and with `--activations 8` the full model's too, as llama.cpp's have.

{peaks(pairs)}

{types_table(pairs)}

The model beside itself in float32, on eight pieces of these documents (128 tokens read, 384 scored):

{kinds_table(result['kinds'])}

![tokens a second of overfill and llama.cpp]({CHART.name})"""


def chart(rows: dict) -> str:
    """Bars: ours over theirs, with the ratio; the limit as a thin line where it fits."""
    stages = [(title, rows[stage]) for stage, title, theirs, _ in STAGES if theirs]
    width, left, bar, gap = 940, 330, 14, 16
    most = max(max(row["ours"], row["theirs"]) for _, row in stages)
    scale = (width - left - 130) / most
    height = 50 + len(stages) * (2 * bar + gap)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<rect x="{left}" y="12" width="12" height="12" fill="#0b6e99"/><text x="{left + 18}" y="22">overfill</text>',
           f'<rect x="{left + 90}" y="12" width="12" height="12" fill="#b8b8b8"/>'
           f'<text x="{left + 108}" y="22">llama.cpp, best type; tokens a second</text>']
    for i, (title, row) in enumerate(stages):
        y = 40 + i * (2 * bar + gap)
        out.append(f'<text x="{left - 10}" y="{y + bar + 4}" text-anchor="end">{title.replace("`", "")}</text>')
        for j, (name, colour) in enumerate((("ours", "#0b6e99"), ("theirs", "#b8b8b8"))):
            length = row[name] * scale
            label = f"{row[name]:.0f}" + (f"  ({row['ratio']:.1f} x)" if name == "ours" else "")
            out.append(f'<rect x="{left}" y="{y + j * bar}" width="{length:.1f}" height="{bar - 1}" fill="{colour}"/>'
                       f'<text x="{left + length + 6:.1f}" y="{y + j * bar + 11}">{label}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def main() -> None:
    result = json.loads(pathlib.Path(sys.argv[1]).read_text())
    rows = {stage: stage_row(result["pairs"], stage, theirs) for stage, _, theirs, _ in STAGES}
    document.put(DOCUMENT, "scripts/bench", measured_text(result, rows), "Performance")
    CHART.write_text(chart(rows))
    print(speeds(rows) + "\n\n" + waits(result))


if __name__ == "__main__":
    main()
