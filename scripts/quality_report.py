"""docs/QUALITY.md and its pictures from the figures of scripts/quality. Pictures are SVG by the few lines below; PNG
copies only where cairosvg or a headless Chromium is installed."""
import functools
import math
import pathlib
import random
import shutil
import subprocess
import sys

from document import END, splice, table

# (task, metric, title, percent, higher is better)
COLUMNS = (
    ("nll", "nll", "NLL", False, False), ("nll", "kl", "KL to full", False, False),
    ("nll", "agree", "agree", True, True), ("lambada", "acc", "LAMBADA", True, True),
    ("boolq", "acc", "BoolQ", True, True), ("piqa", "acc_norm", "PIQA", True, True),
    ("arc_easy", "acc_norm", "ARC-E", True, True), ("arc_challenge", "acc_norm", "ARC-C", True, True),
    ("generate", "rouge_l", "ROUGE-L", True, True),
)
COLOURS = {"minitron": "#b5651d", "reconstruct": "#0b6e99"}
OTHERS = {"shipped": "#2a7f3f", "rounded": "#7a4fa3"}  # pairs without a twin alone beside them
METHODS = {None: "-", "shipped": "shipped, q4_0", "rounded": "rounded, q4_0"}
TRAINED = ("#c2317d", "#d98a1f", "#5b7f95", "#444")
N_RESAMPLES = 1000


def columns_of(row: dict) -> list:
    """Those that were asked for."""
    return [column for column in COLUMNS if column[0] in row["tasks"]]


def cell(answer: dict, metric: str, percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 2)
    low, high = answer["ci95"][metric]
    return f"{scale * answer['metric'][metric]:.{digits}f} ({scale * low:.{digits}f}..{scale * high:.{digits}f})"


def size_of(row: dict) -> str:
    return f"{row['shape'][0]}/{row['shape'][1]}" if row["shape"] else "576/1536"


def label(row: dict) -> list:
    names = {"full": "full", "pruned": "pruned (twin alone)", "overfill": "OverFill"}
    return [size_of(row), METHODS.get(row["method"], row["method"]), names[row["system"]]]


def main_table(rows: list) -> str:
    columns = columns_of(rows[0])
    head = ["hidden/MLP", "method", "system", "MB a step"] + [
        f"{title}{', %' if percent else ''}" for _, _, title, percent, _ in columns]
    lines = [["", "", "n", ""] + [str(rows[0]["tasks"][task]["n"]) for task, *_ in columns]]
    for row in rows:
        megabytes = f"{row['tasks']['nll']['decoder_bytes'] / 1e6:.0f}"
        lines.append(label(row) + [megabytes] + [cell(row["tasks"][task], metric, percent)
                                                 for task, metric, _, percent, _ in columns])
    return table(head, lines)


def decoder_table(rows: list) -> str:
    """Tasks of mostly one token, with that token by the full model and by the decoder."""
    lines = []
    for row in rows:
        if row["system"] != "overfill":
            continue
        tasks = row["tasks"]
        lines.append(label(row)[:2] + [cell(tasks[name], "acc", True) for name in (
            "lambada", "lambada_decoder", "boolq", "boolq_decoder")])
    return table(["hidden/MLP", "method", "LAMBADA, %", "decoder first", "BoolQ, %", "decoder first"], lines)


@functools.cache
def resamples(n: int) -> list:
    draw = random.Random(0)
    return [draw.choices(range(n), k=n) for _ in range(N_RESAMPLES)]


def difference(a: dict, b: dict, metric: str) -> tuple:
    """Mean of a - b over the same rows, with its 95 % bootstrap interval."""
    theirs = {row["line"]: row[metric] for row in b["rows"]}
    values = [row[metric] - theirs[row["line"]] for row in a["rows"]]
    means = sorted(sum(values[i] for i in drawn) / len(values) for drawn in resamples(len(values)))
    return sum(values) / len(values), means[N_RESAMPLES * 25 // 1000], means[N_RESAMPLES * 975 // 1000 - 1]


def judged(row: dict, task: str) -> dict:
    """The answer that a pair is compared by: for BoolQ the one with the decoder's own first token."""
    return row["tasks"][task + "_decoder" if task == "boolq" and row["system"] == "overfill" else task]


def verdict(better: dict, worse: dict, task: str, metric: str, up: bool) -> str:
    """Whether `better` is better than `worse`: +, -, or = where the interval of the difference holds 0."""
    mean, low, high = difference(judged(better, task), judged(worse, task), metric)
    if not up:
        mean, low, high = -mean, -high, -low
    return "+" if low > 0 else "-" if high < 0 else "="


def find(rows: list, system: str, shape=None, method=None) -> dict:
    return next(row for row in rows if row["system"] == system and (row["shape"], row["method"]) == (shape, method))


def is_shown(row: dict, shape: list) -> bool:
    """The trained twin that stands beside those that were not, by position and prompt length."""
    return row["method"] == "trained, kl" and row["shape"] == shape


def pairs_of(rows: list) -> list:
    return [(row["shape"], row["method"]) for row in rows if row["system"] == "overfill" and row["method"] in COLOURS]


def differences(a: dict, b: dict) -> list:
    """a minus b in each column."""
    cells = []
    for task, metric, _, percent, _ in columns_of(a):
        mean, low, high = difference(judged(a, task), judged(b, task), metric)
        scale, digits = (100, 1) if percent else (1, 2)
        cells.append(f"{scale * mean:+.{digits}f} ({scale * low:+.{digits}f}..{scale * high:+.{digits}f})")
    return cells


def difference_head(row: dict) -> list:
    return [f"{title}{', points' if percent else ''}" for _, _, title, percent, _ in columns_of(row)]


def gain_table(rows: list) -> str:
    lines = [[f"{shape[0]}/{shape[1]}", method] + differences(find(rows, "overfill", shape, method),
                                                              find(rows, "pruned", shape, method))
             for shape, method in pairs_of(rows)]
    return table(["hidden/MLP", "method"] + difference_head(rows[0]), lines)


def tally(comparisons: list) -> str:
    n = {sign: comparisons.count(sign) for sign in "+=-"}
    return (f"{n['+']} of {len(comparisons)} comparisons clearly so, {n['=']} within the noise, "
            f"{n['-']} clearly the other way round")


def ordering(rows: list) -> str:
    full = find(rows, "full")
    compared = [(task, metric, up) for task, metric, _, _, up in columns_of(full)]
    over_alone, full_over, solved_over_cut = [], [], []
    exceptions = []
    for shape, method in pairs_of(rows):
        pair, alone = find(rows, "overfill", shape, method), find(rows, "pruned", shape, method)
        for task, metric, up in compared:
            sign = verdict(pair, alone, task, metric, up)
            over_alone.append(sign)
            full_over.append(verdict(full, pair, task, metric, up))
            if sign == "-":
                exceptions.append(f"{task} {metric} at {shape[0]}/{shape[1]} {method}")
    for shape in sorted({tuple(shape) for shape, _ in pairs_of(rows)}):
        for system in ("pruned", "overfill"):
            solved_over_cut += [verdict(find(rows, system, list(shape), "reconstruct"),
                                        find(rows, system, list(shape), "minitron"), *c) for c in compared]
    lines = [f"- OverFill better than the twin alone: {tally(over_alone)}.",
             f"- The full model better than OverFill: {tally(full_over)}.",
             f"- Reconstruction better than cutting: {tally(solved_over_cut)}."]
    if exceptions:
        lines.append("- OverFill is clearly worse than the twin alone on: " + "; ".join(exceptions) + ".")
    return "\n".join(lines)


# --- trained twins

def trained_name(recipe: dict) -> str:
    """What it was trained to do; q8_0 is the paper's setting and goes without saying."""
    alone, tensor_type = recipe["condition"] == "alone", recipe["type"]
    return f"trained{' alone' if alone else ''}, {recipe['objective']}{'' if tensor_type == 'q8_0' else ', ' + tensor_type}"


def is_shown(row: dict, shape: list) -> bool:
    """The trained twin that stands beside those that were not, by position and prompt length."""
    return row["shape"] == shape and row["recipe"]["objective"] == "kl" and row["recipe"]["condition"] == "overfill"


def trained_of(rows: list) -> list:
    return [row for row in rows if "recipe" in row]


def trained_pairs(rows: list) -> list:
    """(what is compared, the one expected to be better, the other), for the rows that are there."""
    by_name = {(tuple(row["shape"]), row["system"], row["method"]): row for row in rows if row["shape"]}
    pairs = []
    for row in trained_of(rows):
        shape, recipe, method = tuple(row["shape"]), row["recipe"], row["method"]
        own = "OverFill" if row["system"] == "overfill" else "twin alone"
        pairs.append((f"{own}, {method}, over {own}, untrained", row, by_name.get((shape, row["system"], row["start"]))))
        if row["system"] == "pruned":
            continue
        for over in ({**recipe, "objective": "ce", "condition": "alone"}, {**recipe, "objective": "ce"}):
            other = by_name.get((shape, "pruned" if over["condition"] == "alone" else "overfill", trained_name(over)))
            if other is not row and other and budget(other) == budget(row):
                pairs.append((f"OverFill, {method}, over {trained_name(over)}", row, other))
    return sorted((pair for pair in pairs if pair[2]), key=lambda pair: pair[1]["shape"])


def budget(row: dict) -> list:
    """What runs must have in common to be compared."""
    return [row["recipe"][k] for k in ("steps", "micro_batches", "rate", "seed", "data")]


def trained_ordering(rows: list) -> str:
    pairs = trained_pairs(rows)
    if not pairs:
        return ""
    tallies = [f"- {what}: {tally([verdict(a, b, task, metric, up) for task, metric, _, _, up in columns_of(a)])}."
               for what, a, b in pairs]
    lines = [[size_of(a), what] + differences(a, b) for what, a, b in pairs]
    return f"""
Twin trained alone < OverFill trained on the next token (ce) is the paper's claim; OverFill trained on the full model's distribution
(kl) is ours. Each over the other on the same rows, with equal width, texts, steps and seed:

{chr(10).join(tallies)}

{claims(rows, pairs)}

The first minus the second (NLL and KL: less is better; BoolQ with the decoder first where it is OverFill):

{table(["hidden/MLP", "compared"] + difference_head(rows[0]), lines)}
"""


def recipes(rows: list) -> str:
    """How they were made, those of one recipe together."""
    def words(row):
        r = row["recipe"]
        tokens = r["steps"] * r["micro_batches"] * r["data"]["batch_tokens"]
        return (f"begun from {row['start']}, {r['steps']} steps of at most {r['micro_batches'] * r['data']['batch_tokens']:,} "
                f"tokens, prompts and padding among them ({tokens / 1e6:.1f} million in all), rate {r['rate']:g}, layers "
                f"{r['type']}, head {r['head_type']}")
    names = {}
    for row in trained_of(rows):
        names.setdefault(words(row), []).append(f"{size_of(row)} {row['method']}")
    return ". ".join(f"{' and '.join(of)}: {how}" for how, of in names.items())


def claims(rows: list, pairs: list) -> str:
    """The paper's, plainly; pairs: of trained_pairs."""
    found, full = [], find(rows, "full")
    for _, a, b in pairs:
        if b["method"].startswith("trained alone") and a["recipe"]["objective"] == b["recipe"]["objective"]:
            signs = [verdict(a, b, task, metric, up) for task, metric, _, _, up in columns_of(a)]
            found.append(f"{'holds' if '-' not in signs and '+' in signs else 'does not hold'} here ({size_of(a)}, {a['recipe']['objective']})")
    gaps = [f"{difference(row['tasks']['nll'], full['tasks']['nll'], 'nll')[0]:.2f} ({size_of(row)} {row['method']})"
            for row in trained_of(rows) if row["system"] == "overfill"]
    return f"""The paper's first claim, that OverFill is better than its twin trained alone, {'; '.join(found) or 'was not tried'}. The second, that little is
lost to the full model: after this much training OverFill's NLL is higher by {', '.join(gaps)}.
The third, that a model trained from random weights needs far more text, is in [HEAL.md](HEAL.md)."""


def start_shape(rows: list) -> list:
    """Of the one twin that was not trained."""
    return next(row for row in rows if row["method"] == "reconstruct")["shape"]


def shown_rows(rows: list) -> list:
    """(name, row): the reconstructed twin, what training made of it, and the twin of this repository."""
    shape = start_shape(rows)
    picked = [find(rows, "pruned", shape, "reconstruct"), find(rows, "overfill", shape, "reconstruct")]
    picked += [row for row in trained_of(rows) if is_shown(row, shape)]
    picked += [row for row in rows if row["method"] == "shipped"]
    names = {"pruned": "twin alone", "overfill": "OverFill"}
    return [(f"{names[row['system']]}, {size_of(row)} {METHODS.get(row['method'], row['method'])}", row) for row in picked]


def positions_table(shown: list) -> str:
    places = [f"{b['begin']}..{b['end']}" for b in shown[0][1]["tasks"]["nll"]["positions"]]
    return table(["", *places], [[name] + [f"{b['kl']:.2f}" for b in row["tasks"]["nll"]["positions"]] for name, row in shown])


def prompts_table(prompts: list, shape: list) -> str:
    size = "/".join(map(str, shape))
    answers = {f"twin alone, {size} reconstruct": [p["pruned"] for p in prompts],
               f"OverFill, {size} reconstruct": [p["overfill"] for p in prompts],
               **{f"OverFill, {METHODS.get(name, name)}": [p["others"][name] for p in prompts] for name in prompts[0]["others"]}}
    lines = [[name] + [cell(answer, "kl", False) for answer in found] for name, found in answers.items()]
    return table([""] + [str(p["prompt_tokens"]) for p in prompts], lines)


def trained_section(result: dict) -> str:
    rows, nll = result["rows"], result["rows"][0]["tasks"]["nll"]
    prompts = f"""
KL to the full model by prompt tokens, {result['prompts'][0]['overfill']['n']} documents, {result['prompts'][0]['overfill']['score_tokens']} tokens scored:

{prompts_table(result['prompts'], start_shape(rows))}
""" if "prompts" in result else ""
    return f"""## Before and after training

By `scripts/quality --healed`, {result['date']}. Trained: by `scripts/heal/run` on `t0.train`, to write behind the full model's KV, or alone,
reading the prompt itself (the paper's finetuned twin); on the next token of the text (ce) or on the full model's distribution (kl).
{recipes(rows)}. shipped: the twin of this repository, whose training its card tells (`models/smollm2-135m-overfill.md`).
reconstruct: untrained, q8_0, solved for on {result['calibration_tokens']:,} tokens.

{nll['n']} documents for NLL, KL and agree, as above; ROUGE-L: of greedy answers to prompts of `t0.valid`, 64 tokens at most.

{main_table(rows)}
{trained_ordering(rows)}
![KL by output position, before and after training](quality-trained.svg)

KL to the full model by output position:

{positions_table(shown_rows(rows))}
{prompts}"""


# --- pictures

def nice_ticks(low: float, high: float, n: int = 6) -> list:
    step = 10 ** math.floor(math.log10((high - low) / n or 1))
    step *= next(k for k in (1, 2, 2.5, 5, 10) if (high - low) / (step * k) <= n)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Chart:
    """Lines over a plane. series: (name, colour, dash, [(x, y)])."""
    width, height, left, right, top, bottom = 760, 420, 64, 220, 40, 52

    def __init__(self, title, x_title, y_title, series, log_x=False):
        self.title, self.x_title, self.y_title, self.series, self.log_x = title, x_title, y_title, series, log_x
        xs = [self.on_axis(x) for *_, points in series for x, _ in points]
        ys = [y for *_, points in series for _, y in points]
        self.x0, self.x1 = min(xs), max(xs)
        self.y0, self.y1 = min(0, min(ys)), max(ys) * 1.08 or 1
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 1, self.x1 + 1

    def on_axis(self, x):
        return math.log2(x) if self.log_x else x

    def x(self, value):
        return self.left + (self.on_axis(value) - self.x0) / (self.x1 - self.x0) * (self.width - self.left - self.right)

    def y(self, value):
        return self.height - self.bottom - (value - self.y0) / (self.y1 - self.y0) * (self.height - self.top - self.bottom)

    def axes(self) -> list:
        right, bottom = self.width - self.right, self.height - self.bottom
        out = []
        for tick in nice_ticks(self.y0, self.y1):
            out.append(f'<line x1="{self.left}" x2="{right}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}" stroke="#e4e4e4"/>'
                       f'<text x="{self.left - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        ticks = sorted({x for *_, points in self.series for x, _ in points}) if self.log_x else nice_ticks(self.x0, self.x1)
        for tick in ticks:
            out.append(f'<text x="{self.x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
        return out + [
            f'<line x1="{self.left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#888"/>',
            f'<text x="{(self.left + right) / 2:.0f}" y="{self.height - 12}" text-anchor="middle">{self.x_title}</text>',
            f'<text transform="translate(16 {(self.top + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">{self.y_title}</text>',
            f'<text x="{self.left}" y="22" font-size="15" font-weight="bold">{self.title}</text>']

    def line(self, i, name, colour, dash, points) -> list:
        at = [f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in sorted(points)]
        style = f'stroke="{colour}" stroke-width="2" fill="none"' + (f' stroke-dasharray="{dash}"' if dash else "")
        y, x = self.top + 18 * i + 8, self.width - self.right + 16
        marks = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in at)
        return [f'<polyline points="{" ".join(at)}" {style}/>{marks}',
                f'<line x1="{x}" x2="{x + 26}" y1="{y - 4}" y2="{y - 4}" {style}/><text x="{x + 32}" y="{y}">{name}</text>']

    def svg(self) -> str:
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
               f'width="{self.width}" height="{self.height}" font-family="sans-serif" font-size="12">',
               f'<rect width="{self.width}" height="{self.height}" fill="#fff"/>'] + self.axes()
        for i, series in enumerate(self.series):
            out += self.line(i, *series)
        return "\n".join(out + ["</svg>"]) + "\n"


def size_chart(rows: list) -> Chart:
    def points(system, method):
        return [(row["tasks"]["nll"]["decoder_bytes"] / 1e6, row["tasks"]["nll"]["metric"]["kl"]) for row in rows
                if (row["system"], row["method"]) == (system, method)]
    series = [(f"{name}, {method}", colour, dash, points(system, method)) for method, colour in COLOURS.items()
              for system, name, dash in (("overfill", "OverFill", ""), ("pruned", "twin alone", "5 4"))]
    series += [(f"OverFill, {METHODS[method]}", colour, "", points("overfill", method))
               for method, colour in OTHERS.items() if points("overfill", method)]
    return Chart("Quality against decoder size", "MB of weights a decode step reads", "KL to the full model, nats a token",
                 series)


def kl_by_position(row: dict) -> list:
    return [((b["begin"] + b["end"]) / 2, b["kl"]) for b in row["tasks"]["nll"]["positions"]]


def position_chart(rows: list) -> Chart:
    series, shades = [], ("#7fc4de", "#0b6e99", "#063f57", "#111")
    shapes = sorted({tuple(row["shape"]) for row in rows if row["method"] == "reconstruct"})
    for shade, shape in zip(shades, shapes):
        for system, name, dash in (("overfill", "OverFill", ""), ("pruned", "twin alone", "5 4")):
            row = find(rows, system, list(shape), "reconstruct")
            series.append((f"{name}, {shape[0]}/{shape[1]}", shade, dash, kl_by_position(row)))
    return Chart("Divergence by output position (reconstruct)", "output position, tokens",
                 "KL to the full model, nats a token", series)


def trained_chart(rows: list) -> Chart:
    """Behind the full model only: the twin alone is far above all of them."""
    series = [(name.removeprefix("OverFill, "), colour, "", kl_by_position(row)) for colour, (name, row) in zip(
        ("#0b6e99",) + TRAINED, [s for s in shown_rows(rows) if s[1]["system"] == "overfill"])]
    return Chart("OverFill: divergence by output position, before and after training", "output position, tokens",
                 "KL to the full model, nats a token", series)


def prompt_chart(prompts: list) -> Chart:
    def line(pick):
        return [(p["prompt_tokens"], pick(p)) for p in prompts]
    kl = {system: line(lambda p, s=system: p[s]["metric"]["kl"]) for system in ("pruned", "overfill")}
    gain = line(lambda p: p["pruned"]["metric"]["kl"] - p["overfill"]["metric"]["kl"])
    return Chart("What the full model's KV wins, by prompt length", "prompt tokens", "KL to the full model, nats a token",
                 [("twin alone", "#888", "5 4", kl["pruned"]), ("OverFill", "#0b6e99", "", kl["overfill"]),
                  ("gain", "#2a7f3f", "2 3", gain)], log_x=True)


def write_png(svg: pathlib.Path) -> str:
    """Empty, or why there is none."""
    png = svg.with_suffix(".png")
    try:
        import cairosvg
        cairosvg.svg2png(url=str(svg), write_to=str(png), scale=2)
        return ""
    except ImportError:
        pass
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if not browser:
        return "no cairosvg and no Chromium: no PNG copies of the pictures"
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           f"--window-size={Chart.width},{Chart.height}", "--force-device-scale-factor=2",
                           f"--screenshot={png}", svg.resolve().as_uri()], capture_output=True)
    return "" if done.returncode == 0 else f"{browser} made no PNG: {done.stderr.decode()[-200:]}"


def document(result: dict) -> str:
    rows, nll = result["rows"], result["rows"][0]["tasks"]["nll"]
    makes = "; ".join(f"{'/'.join(map(str, t['shape']))} {t['method']}: {t['cpu_seconds']:.0f} s of CPU, {t['bytes'] / 1e6:.0f} MB"
                      for t in result["twins"])
    return f"""What width pruning costs and what OverFill wins back, without any training but the shipped twin's. Everything here is written by
`scripts/quality` from answers of `overfill eval`, which runs the pools, pages and kernels of serving.

Model: {result['model']}. Twins: q8_0, calibrated on {result['calibration_tokens']:,} tokens of `t0.train` (minitron:
{result['cut_tokens']:,}). {result['date']}. Made in: {makes}.

## Systems

- **full**: the full model reads and writes.
- **pruned**: the twin alone; it reads the prompt too.
- **OverFill**: the full model reads the prompt and gives the first token, the twin writes on the full model's KV.

minitron keeps the channels with the largest activations, as the paper does before it trains. reconstruct solves for the
twin's matrices. The paper's twins are trained after cutting; none of these is, but for the one named shipped: the twin
that this repository brings, MLP channels cut and then trained on the full model's KV, in 4 bits (`models/smollm2-135m-overfill.md`).
rounded: nothing cut, the full model in that twin's type.

## Figures

With 95 % bootstrap intervals over rows; rows are chosen by hash, the same ones for every system. NLL and KL in nats a
token, on {nll['n']} documents of `t0.valid` (one for each article), {nll['prompt_tokens']} tokens read, {nll['score_tokens']} scored;
agree: the same likeliest token as the full model. PIQA and ARC: likelihood of the choices by length; BoolQ: likelihood.

{main_table(rows)}

The first token of an answer is the full model's, so BoolQ, whose answers have one token, is the full model's figure for
OverFill by construction, and LAMBADA nearly so. With the decoder scoring that token too, on the full model's KV
(`--decoder-first`):

{decoder_table(rows)}

## The paper's ordering

Pruned < OverFill <= full, row by row on the same data. "Clearly": the 95 % interval of the difference leaves out 0. BoolQ
here is with the decoder first.

{ordering(rows)}

OverFill minus the twin alone (NLL and KL: less is better; BoolQ with the decoder first):

{gain_table(rows)}

## Size, position, prompt length

![KL against decoder size](quality-size.svg)

![KL by output position](quality-position.svg)
{prompt_section(result.get("prompts", []), result["twins"][0]["shape"])}{calibration_section(result.get("calibrations", []))}"""


def prompt_section(prompts: list, shape: list) -> str:
    if not prompts:
        return ""
    gains = ", ".join(f"{p['prompt_tokens']}: {p['pruned']['metric']['kl'] - p['overfill']['metric']['kl']:.2f}"
                      for p in prompts)
    return f"""
![KL by prompt length](quality-prompt.svg)

KL won by OverFill over the twin alone ({shape[0]}/{shape[1]} reconstruct, {prompts[0]['overfill']['n']} documents,
{prompts[0]['overfill']['score_tokens']} tokens scored), by prompt tokens: {gains}.
"""


def better(calibrations: list) -> str:
    """By the answers as the full model sees them and by documents; a text that repeats itself is likely, too."""
    twins = [c for c in calibrations if c["nll"]]
    answers = min(twins, key=lambda c: c["answers"]["metric"]["nll"])
    documents = min(twins, key=lambda c: c["nll"]["metric"]["kl"])
    found = answers["name"] if answers is documents else f"{answers['name']} for answers, {documents['name']} for documents"
    repeats = answers is min(twins, key=lambda c: c["answers"]["metric"]["distinct_3"])
    return found + (", by all but distinct-3: its answers repeat themselves more" if repeats and len(twins) > 1 else "")


def calibration_section(calibrations: list) -> str:
    """quickstart's twin: which text to calibrate on."""
    if not calibrations:
        return ""
    head = ["calibrated on", "KL on documents", "agree, %", "NLL of its answers by the full model",
            "its tokens the full model's choice, %", "distinct-3", "answers that end, %", "made in, s"]
    lines = []
    for c in calibrations:
        nll, answers = c["nll"], c["answers"]
        lines.append([c["name"] if nll else "(the full model itself)",
                      cell(nll, "kl", False) if nll else "", cell(nll, "agree", True) if nll else "",
                      cell(answers, "nll", False), cell(answers, "agree", True), cell(answers, "distinct_3", False),
                      cell(answers, "ends", True), f"{c['seconds']:.0f}" if nll else ""])
    first = calibrations[-1]["answers"]
    return f"""
## What quickstart's twin is calibrated on

512/1280 in q4_1, the twin that `scripts/quickstart` makes, by two texts that need no data set: the model's own answers to
`scripts/questions.txt` (seeded sampling, through the chat template) and the sayings and passages of Debian's package
`fortunes`. Answers: greedy, as long as `overfill eval --task answers` lets them, to the first turns of {first['n']} MT-Bench questions.
The better one is {better(calibrations)}.

{table(head, lines)}
"""


def draw(charts: dict, folder: pathlib.Path) -> None:
    reasons = set()
    for name, chart in charts.items():
        path = folder / f"{name}.svg"
        path.write_text(chart.svg())
        reasons.add(write_png(path))
    for reason in reasons - {""}:
        print(f"==> {reason}", file=sys.stderr)


def put(folder: pathlib.Path, mark: str, text: str) -> None:
    path = folder / "QUALITY.md"
    splice(path, f"<!-- measured: written by {mark} -->", END, text, "Quality")
    print(f"==> {path}", file=sys.stderr)


def write(result: dict, folder: pathlib.Path) -> None:
    charts = {"quality-size": size_chart(result["rows"]), "quality-position": position_chart(result["rows"])}
    if result.get("prompts"):
        charts["quality-prompt"] = prompt_chart(result["prompts"])
    draw(charts, folder)
    put(folder, "scripts/quality", document(result))


def write_trained(result: dict, folder: pathlib.Path) -> None:
    draw({"quality-trained": trained_chart(result["rows"])}, folder)
    put(folder, "scripts/quality --healed", trained_section(result))
