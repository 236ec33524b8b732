/* The forward pass, phase by phase. See forward.h; products are in linear.c, attention.c has what
 * its name says. Every phase is cut into units that the team's members claim; a barrier ends it. */
#include "engine/base/mem.h"
#include "engine/forward/forward_internal.h"

#include <assert.h>
#include <string.h>

static void barrier_tap(struct forward *f, unsigned member, enum forward_tap tap, uint32_t layer,
                        const float *rows, uint32_t width, size_t stride)
{
    team_barrier(f->team);
    if (!f->tap)
        return;
    if (member == 0)
        f->tap(f->tap_user, tap, layer, rows, f->n_rows, width, stride);
    team_barrier(f->team);
}

/* x = embedding of the token */
static void embed(struct forward *f)
{
    size_t row;
    while (team_claim(f->team, f->n_rows, &row))
        model_embed(f->model, f->rows[row].token, f->x + row * f->hidden_stride);
    team_barrier(f->team);
}

/* normed = rmsnorm(x), quantised */
static void norm(struct forward *f, const float *weight)
{
    const struct model_params *p = &f->model->params;
    size_t row;
    while (team_claim(f->team, f->n_rows, &row)) {
        float *out = f->normed + row * f->hidden_stride;
        f->kernels->rmsnorm(f->x + row * f->hidden_stride, weight, p->hidden, p->norm_width,
                            p->rms_eps, out);
        linear_prepare(f, out, p->hidden, row, 0, &f->quantized_normed);
    }
}

/* q, k, v = W normed, one head a unit: bias, norm, RoPE, and to its place while it is in cache */
static void qkv(struct forward *f, unsigned member, uint32_t layer)
{
    const struct model *m = f->model;
    const struct matrix *w = &m->layers[layer].qkv;
    size_t tiles = m->head_pad / KERNEL_TILE;
    size_t n_tiles = w->n_rows / KERNEL_TILE;
    size_t n_units = unit_count(f->n_rows, n_tiles, tiles);
    size_t unit;

    while (team_claim(f->team, n_units, &unit)) {
        struct unit_range u = unit_at(unit, f->n_rows, n_tiles, tiles);
        float *tile = f->scratch[member].tile;
        linear_run(f, &(struct linear){
                          .w = w,
                          .x = f->normed,
                          .x_stride = f->hidden_stride,
                          .quantized = &f->quantized_normed,
                          .row_begin = u.row_begin,
                          .row_end = u.row_end,
                          .tile_begin = u.tile_begin,
                          .tile_end = u.tile_end,
                          .out = tile,
                          .out_stride = m->head_pad,
                      });
        attention_store_head(f, layer, (uint32_t)(u.tile_begin / tiles), u.row_begin, u.row_end,
                             tile);
    }
    team_barrier(f->team);
}

/* attn = softmax(q K) V */
static void attention(struct forward *f, unsigned member, uint32_t layer)
{
    size_t n_units = (size_t)f->n_attend_units * f->model->params.n_kv_heads;
    size_t unit;
    while (team_claim(f->team, n_units, &unit))
        attention_run(f, member, layer, unit);
    team_barrier(f->team);
}

static void quantize_attention(struct forward *f)
{
    size_t n = f->model->layers[0].o.n_in;
    size_t row;
    if (!f->model->quantized)
        return;
    while (team_claim(f->team, f->n_rows, &row))
        linear_prepare(f, f->attn + row * f->heads_stride, n, row, 0, &f->quantized_attn);
    team_barrier(f->team);
}

/* x += W in */
static void add_product(struct forward *f, const struct matrix *w, const float *in,
                        size_t in_stride, const struct quantized_rows *quantized)
{
    size_t n_tiles = w->n_rows / KERNEL_TILE;
    size_t n_units = unit_count(f->n_rows, n_tiles, TILES_PLAIN);
    size_t unit;
    while (team_claim(f->team, n_units, &unit)) {
        struct unit_range u = unit_at(unit, f->n_rows, n_tiles, TILES_PLAIN);
        linear_run(f, &(struct linear){
                          .w = w,
                          .x = in,
                          .x_stride = in_stride,
                          .quantized = quantized,
                          .row_begin = u.row_begin,
                          .row_end = u.row_end,
                          .tile_begin = u.tile_begin,
                          .tile_end = u.tile_end,
                          .out = f->x + u.row_begin * f->hidden_stride + u.tile_begin * KERNEL_TILE,
                          .out_stride = f->hidden_stride,
                          .accumulate = true,
                      });
    }
    team_barrier(f->team);
}

/* One block of MLP channels of a unit's rows: silu(gate) * up, to float or quantised. The tile
 * holds 16 gates, 16 ups, and again. */
static void activate(struct forward *f, const struct unit_range *u, const float *tile)
{
    size_t n_pairs = (u->tile_end - u->tile_begin) / 2;
    size_t stride = TILES_GATE_UP * KERNEL_TILE;
    size_t block = u->tile_begin / TILES_GATE_UP;

    for (size_t row = u->row_begin; row < u->row_end; row++) {
        const float *in = tile + (row - u->row_begin) * stride;
        float *out = f->mlp + row * f->mlp_stride + block * KERNEL_BLOCK;
        for (size_t i = 0; i < n_pairs; i++)
            f->kernels->silu_mul(in + 2 * i * KERNEL_TILE, in + (2 * i + 1) * KERNEL_TILE,
                                 KERNEL_TILE, out + i * KERNEL_TILE);
        linear_prepare(f, out, n_pairs * KERNEL_TILE, row, block, &f->quantized_mlp);
    }
}

/* mlp = silu(W_gate normed) * (W_up normed), 32 channels a unit: one block of down's input */
static void gate_up(struct forward *f, unsigned member, uint32_t layer)
{
    const struct matrix *w = &f->model->layers[layer].gate_up;
    size_t n_tiles = w->n_rows / KERNEL_TILE;
    size_t n_units = unit_count(f->n_rows, n_tiles, TILES_GATE_UP);
    size_t stride = TILES_GATE_UP * KERNEL_TILE;
    size_t unit;

    while (team_claim(f->team, n_units, &unit)) {
        struct unit_range u = unit_at(unit, f->n_rows, n_tiles, TILES_GATE_UP);
        float *tile = f->scratch[member].tile;
        linear_run(f, &(struct linear){
                          .w = w,
                          .x = f->normed,
                          .x_stride = f->hidden_stride,
                          .quantized = &f->quantized_normed,
                          .row_begin = u.row_begin,
                          .row_end = u.row_end,
                          .tile_begin = u.tile_begin,
                          .tile_end = u.tile_end,
                          .out = tile,
                          .out_stride = stride,
                      });
        activate(f, &u, tile);
    }
}

/* logits = W_head rmsnorm(x), for the wanted rows only */
static void head(struct forward *f)
{
    const struct model *m = f->model;
    const struct model_params *p = &m->params;
    size_t n_tiles = m->head.n_rows / KERNEL_TILE;
    size_t i;

    while (team_claim(f->team, f->n_logit_rows, &i)) {
        float *out = f->normed + i * f->hidden_stride;
        f->kernels->rmsnorm(f->x + f->logit_rows[i] * f->hidden_stride, m->output_norm, p->hidden,
                            p->norm_width, p->rms_eps, out);
        linear_prepare(f, out, p->hidden, i, 0, &f->quantized_normed);
    }
    team_barrier(f->team);
    while (team_claim(f->team, unit_count(f->n_logit_rows, n_tiles, TILES_HEAD), &i)) {
        struct unit_range u = unit_at(i, f->n_logit_rows, n_tiles, TILES_HEAD);
        linear_run(
            f, &(struct linear){
                   .w = &m->head,
                   .x = f->normed,
                   .x_stride = f->hidden_stride,
                   .quantized = &f->quantized_normed,
                   .row_begin = u.row_begin,
                   .row_end = u.row_end,
                   .tile_begin = u.tile_begin,
                   .tile_end = u.tile_end,
                   .out = f->logits + u.row_begin * f->vocab_stride + u.tile_begin * KERNEL_TILE,
                   .out_stride = f->vocab_stride,
               });
    }
}

static void pass(struct team *team, unsigned member, void *context)
{
    struct forward *f = context;
    const struct model_params *p = &f->model->params;
    (void)team;

    embed(f);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        const struct layer *layer = &f->model->layers[l];
        norm(f, layer->attn_norm);
        barrier_tap(f, member, TAP_ATTN_NORM, l, f->normed, p->hidden, f->hidden_stride);
        qkv(f, member, l);
        attention(f, member, l);
        quantize_attention(f);
        add_product(f, &layer->o, f->attn, f->heads_stride, &f->quantized_attn);
        norm(f, layer->mlp_norm);
        barrier_tap(f, member, TAP_MLP_NORM, l, f->normed, p->hidden, f->hidden_stride);
        gate_up(f, member, l);
        barrier_tap(f, member, TAP_MLP_HIDDEN, l, f->mlp, p->mlp, f->mlp_stride);
        add_product(f, &layer->down, f->mlp, f->mlp_stride, &f->quantized_mlp);
    }
    if (f->n_logit_rows)
        head(f);
}

static void add_rows(struct forward *f, uint32_t i_slice)
{
    const struct forward_slice *slice = &f->slices[i_slice];
    for (uint32_t i = 0; i < slice->n_tokens; i++) {
        bool wanted = slice->logits == LOGITS_ALL ||
                      (slice->logits == LOGITS_LAST && i + 1 == slice->n_tokens);
        if (i % ATTEND_ROWS == 0) {
            uint32_t rest = slice->n_tokens - i;
            f->attend_units[f->n_attend_units++] = (struct attend_unit){
                .slice = i_slice,
                .row = f->n_rows,
                .n_rows = rest < ATTEND_ROWS ? rest : ATTEND_ROWS,
            };
        }
        if (wanted) {
            assert(f->n_logit_rows < f->max_logit_rows);
            f->logit_rows[f->n_logit_rows++] = f->n_rows;
        }
        assert(f->n_rows < f->max_rows);
        f->rows[f->n_rows++] = (struct row){i_slice, slice->position + i, slice->tokens[i]};
    }
}

const float *forward_run(struct forward *f, const struct model *model, const struct kv_pool *pool,
                         const struct forward_slice *slices, size_t n_slices, size_t *ret_stride)
{
    f->model = model;
    f->pool = pool;
    f->slices = slices;
    f->n_slices = n_slices;
    f->n_rows = f->n_logit_rows = f->n_attend_units = 0;
    for (size_t i = 0; i < n_slices; i++)
        add_rows(f, (uint32_t)i);
    team_run(f->team, pass, f);
    *ret_stride = f->vocab_stride;
    return f->logits;
}

void forward_set_tap(struct forward *f, forward_tap_fn *tap, void *user)
{
    f->tap = tap;
    f->tap_user = user;
}
