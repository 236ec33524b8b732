/* The picture. See frontier.h. */
#include "engine/frontier/frontier.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define WIDTH 860.0
#define HEIGHT 460.0
#define LEFT 62.0
#define RIGHT 120.0 /* room for the last labels */
#define TOP 62.0
#define BOTTOM 56.0
#define LETTER 6.6 /* width of a letter, about */
#define LINE 13.0  /* from label to label */

/* Twins of one kind share a colour. */
enum kind { BOTH_8, BOTH_4, MLP_ONLY, ROUNDED };
static const struct {
    const char *colour, *name;
} KINDS[] = {
    [BOTH_8] = {"#b03a2e", "narrower, over 5 bits"},
    [BOTH_4] = {"#b9770e", "narrower, up to 5 bits"},
    [MLP_ONLY] = {"#1f618d", "only MLP narrower"},
    [ROUNDED] = {"#1e8449", "only fewer bits"},
};
#define N_KINDS (sizeof(KINDS) / sizeof(KINDS[0]))

static enum kind kind_of(const struct frontier_plot *plot, const struct frontier_point *p)
{
    bool is_coarse = 8 * tensor_block_bytes(p->type) <= 5 * tensor_block_elements(p->type);
    if (p->hidden + 32 <= plot->full->hidden) /* a last block that is not whole does not count */
        return is_coarse ? BOTH_4 : BOTH_8;
    return p->mlp + 32 <= plot->full->mlp ? MLP_ONLY : ROUNDED;
}

/* Where things are. KL runs from low to high, powers of ten apart alike. */
struct scale {
    double most_mb, low, high;
};

static double x_of(const struct scale *s, double bytes)
{
    return LEFT + bytes / 1e6 / s->most_mb * (WIDTH - LEFT - RIGHT);
}

static double y_of(const struct scale *s, double kl)
{
    double share = log(fmax(kl, s->low) / s->low) / log(s->high / s->low);
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
}

/* 1, 2 or 5 times a power of ten: the largest one not above value. */
static double round_down(double value)
{
    double power = pow(10, floor(log10(value)));
    return value >= 5 * power ? 5 * power : value >= 2 * power ? 2 * power : power;
}

static double next_step(double value)
{
    return round_down(value * 2.6);
}

static struct scale find_scale(const struct frontier_plot *plot)
{
    struct scale s = {.most_mb = plot->full_bytes / 1e6, .low = INFINITY, .high = 0};
    for (size_t i = 0; i < plot->n; i++) {
        double kl = plot->dots[i].score.kl;
        s.most_mb = fmax(s.most_mb, plot->dots[i].score.bytes / 1e6);
        if (!isfinite(kl))
            continue;
        s.low = fmin(s.low, fmax(kl, 1e-4)); /* nearer than that is the full model */
        s.high = fmax(s.high, kl);
    }
    for (size_t i = 0; i < plot->n_budgets; i++)
        s.most_mb = fmax(s.most_mb, plot->budgets[i] / 1e6);
    s.most_mb = s.most_mb > 0 ? s.most_mb * 1.02 : 1;
    s.low = isfinite(s.low) ? round_down(s.low * 0.999) : 0.1;
    double step = s.low;
    do
        step = next_step(step);
    while (step < s.high);
    s.high = step;
    return s;
}

static void draw_axes(const struct scale *s, struct buf *out)
{
    double bottom = HEIGHT - BOTTOM, right = WIDTH - RIGHT;
    double kl = s->low;
    while (kl <= s->high * 1.001) {
        buf_printf(out,
                   "<line x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
                   "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                   LEFT, right, y_of(s, kl), y_of(s, kl), LEFT - 8, y_of(s, kl) + 4, kl);
        kl = next_step(kl);
    }
    double step = round_down(s->most_mb / 4);
    int n_steps = (int)(s->most_mb / step);
    for (int i = 0; i <= n_steps; i++)
        buf_printf(out, "<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\">%g</text>\n",
                   x_of(s, i * step * 1e6), bottom + 18, i * step);
    buf_printf(out,
               "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">megabytes of weights that a "
               "decoded token reads</text>\n"
               "<text x=\"16\" y=\"%.0f\" transform=\"rotate(-90 16 %.0f)\" "
               "text-anchor=\"middle\">KL to the full model, nats a token</text>\n",
               (LEFT + right) / 2, HEIGHT - 14, (TOP + bottom) / 2, (TOP + bottom) / 2);
}

static void draw_upright(const struct scale *s, double bytes, const char *colour, const char *what,
                         struct buf *out)
{
    double x = x_of(s, bytes);
    buf_printf(out,
               "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\" stroke=\"%s\" "
               "stroke-dasharray=\"4 4\"/><text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\" "
               "fill=\"%s\">%s%g MB</text>\n",
               x, x, TOP, HEIGHT - BOTTOM, colour, x, TOP - 6, colour, what,
               round(bytes / 1e4) / 100);
}

static void draw_legend(const struct frontier_plot *plot, struct buf *out)
{
    double x = LEFT;
    bool is_there[N_KINDS] = {false};
    for (size_t i = 0; i < plot->n; i++)
        is_there[kind_of(plot, &plot->dots[i].point)] = true;
    for (size_t k = 0; k < N_KINDS; k++) {
        if (!is_there[k])
            continue;
        buf_printf(out, "<circle cx=\"%.0f\" cy=\"18\" r=\"5\" fill=\"%s\"/>", x + 5,
                   KINDS[k].colour);
        buf_printf(out, "<text x=\"%.0f\" y=\"22\">%s</text>\n", x + 15, KINDS[k].name);
        x += 32 + LETTER * (double)strlen(KINDS[k].name);
    }
    buf_printf(out,
               "<circle cx=\"%.0f\" cy=\"18\" r=\"9\" fill=\"none\" stroke=\"#333\" "
               "stroke-width=\"2\"/><text x=\"%.0f\" y=\"22\">best in a budget</text>\n",
               x + 9, x + 23);
}

static void draw_front(const struct frontier_plot *plot, const struct scale *s, struct buf *out)
{
    buf_append_str(out, "<polyline fill=\"none\" stroke=\"#888\" stroke-width=\"1.5\" points=\"");
    for (size_t i = 0; i < plot->n; i++)
        if (plot->dots[i].on_front)
            buf_printf(out, "%.1f,%.1f ", x_of(s, plot->dots[i].score.bytes),
                       y_of(s, plot->dots[i].score.kl));
    buf_append_str(out, "\"/>\n");
}

static bool is_best(const struct frontier_plot *plot, size_t i)
{
    for (size_t b = 0; b < plot->n_budgets; b++) {
        size_t best = plot->n;
        for (size_t k = 0; k < plot->n; k++) {
            const struct frontier_dot *dot = &plot->dots[k];
            if (dot->on_front && dot->score.bytes <= plot->budgets[b])
                best = k; /* on the frontier those that read more are nearer */
        }
        if (best == i)
            return true;
    }
    return false;
}

/* A place for a label that no earlier one has: beside its dot, or lines above or below. */
struct label {
    double x, y, width;
};

static bool is_free(const struct label *labels, size_t n, const struct label *at)
{
    for (size_t i = 0; i < n; i++)
        if (fabs(labels[i].y - at->y) < LINE - 1 && at->x < labels[i].x + labels[i].width &&
            labels[i].x < at->x + at->width)
            return false;
    return true;
}

static struct label place(const struct label *labels, size_t n, double x, double y, double width)
{
    static const int STEPS[] = {0, -1, 1, -2, 2, -3, 3};
    struct label at = {x + 13, y + 4, width};
    for (size_t i = 0; i < sizeof(STEPS) / sizeof(STEPS[0]); i++) {
        at.y = y + 4 + STEPS[i] * LINE;
        if (at.y < HEIGHT - BOTTOM && at.y > TOP && is_free(labels, n, &at))
            return at;
    }
    at.y = y + 4;
    return at;
}

#define MOST_LABELS 128 /* of more dots than these the rest has none */

static void draw_dots(const struct frontier_plot *plot, const struct scale *s, struct buf *out)
{
    struct label labels[MOST_LABELS];
    size_t n_labels = 0;
    for (size_t i = 0; i < plot->n; i++) {
        const struct frontier_dot *dot = &plot->dots[i];
        char name[FRONTIER_NAME_BYTES];
        if (!isfinite(dot->score.kl))
            continue;
        double x = x_of(s, dot->score.bytes), y = y_of(s, dot->score.kl);
        if (is_best(plot, i))
            buf_printf(out,
                       "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"9\" fill=\"none\" stroke=\"#333\" "
                       "stroke-width=\"2\"/>",
                       x, y);
        buf_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"%s\"/>", x, y,
                   KINDS[kind_of(plot, &dot->point)].colour);
        if (n_labels == MOST_LABELS)
            continue;
        frontier_point_name(&dot->point, name);
        struct label at = place(labels, n_labels, x, y, LETTER * (double)strlen(name));
        labels[n_labels++] = at;
        buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"11\">%s</text>\n", at.x, at.y,
                   name);
    }
}

void frontier_draw(const struct frontier_plot *plot, struct buf *out)
{
    struct scale scale = find_scale(plot);
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
               "font-family=\"sans-serif\" font-size=\"12\">\n"
               "<rect width=\"%.0f\" height=\"%.0f\" fill=\"white\"/>\n",
               WIDTH, HEIGHT, WIDTH, HEIGHT);
    draw_axes(&scale, out);
    for (size_t i = 0; i < plot->n_budgets; i++)
        draw_upright(&scale, plot->budgets[i], "#888", "", out);
    if (plot->full_bytes > 0)
        draw_upright(&scale, plot->full_bytes, "#333", "full ", out);
    draw_legend(plot, out);
    draw_front(plot, &scale, out);
    draw_dots(plot, &scale, out);
    buf_append_str(out, "</svg>\n");
}
