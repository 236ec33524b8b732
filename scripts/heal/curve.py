"""The training curve as SVG: KL over steps, of training batches and of the documents held back."""

import json

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 20, 30, 45


def read(path):
    trained, held = [], []
    with open(path, encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if "held" in row:
                held.append((row["step"], row["held"]["kl"]))
            else:
                trained.append((row["step"], row["kl"]))
    return trained, held


def draw(path, out):
    trained, held = read(path)
    points = trained + held
    if not points:
        return
    last = max(1, max(x for x, _ in points))
    top = max(y for _, y in points) * 1.05 or 1
    px = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * x / last
    py = lambda y: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top
    text = lambda x, y, s, anchor="middle": (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{s}</text>')
    line = lambda rows, style: (f'<polyline fill="none" {style} points="'
                                + " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in rows) + '"/>')
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="13">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for i in range(6):
        y = top * i / 5
        parts.append(f'<path d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(text(LEFT - 6, py(y) + 4, f"{y:.2f}", "end"))
        parts.append(text(px(last * i / 5), HEIGHT - BOTTOM + 18, f"{last * i / 5:.0f}"))
    parts += [line(trained, 'stroke="#9bb" stroke-width="1"'),
              line(held, 'stroke="#c33" stroke-width="2"'),
              text(WIDTH / 2, HEIGHT - 8, "steps"),
              text(LEFT, 18, "KL to the full model, nats a token; red: documents held back", "start"),
              "</svg>"]
    with open(out, "w", encoding="utf-8") as f:
        f.write("\n".join(parts) + "\n")
