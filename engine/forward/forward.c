/* The forward pass, phase by phase. See forward.h; products are in linear.c, attention.c has what
 * its name says. The leader runs `pass`; each phase is one team_for over its units, whose function
 * stands above it. */
#include "engine/base/mem.h"
#include "engine/forward/forward_internal.h"

#include <assert.h>
#include <string.h>

static void run_phase(struct forward *f, size_t n_units, team_unit_fn *fn)
{
    team_for(f->team, n_units, fn, f);
}

/* x = embedding of the token */
static void embed_unit(void *context, unsigned member, size_t row)
{
    const struct forward *f = context;
    model_embed(f->model, f->rows[row].token, f->x + row * f->hidden_stride);
}

/* normed = rmsnorm(x), quantised */
static void norm_unit(void *context, unsigned member, size_t row)
{
    const struct forward *f = context;
    const struct model_params *p = &f->model->params;
    float *out = f->normed + row * f->hidden_stride;
    f->kernels->rmsnorm(f->x + row * f->hidden_stride, f->norm_weight, p->hidden, p->norm_width,
                        p->rms_eps, out);
    linear_prepare(f, out, p->hidden, row, 0, &f->quantized_normed);
}

static void norm(struct forward *f, const float *weight)
{
    f->norm_weight = weight;
    run_phase(f, f->n_rows, norm_unit);
}

/* A part of W normed to the member's own tile, whose rows lie `stride` apart. */
static float *product_to_tile(const struct forward *f, unsigned member, const struct matrix *w,
                              const struct unit_range *range, size_t stride)
{
    float *tile = f->scratch[member].tile;
    linear_run(f, &(struct linear){
                      .w = w,
                      .x = f->normed,
                      .x_stride = f->hidden_stride,
                      .quantized = &f->quantized_normed,
                      .range = *range,
                      .out = tile,
                      .out_stride = stride,
                  });
    return tile;
}

/* q, k, v = W normed, one head a unit: bias, norm, RoPE, and to its place while it is in cache */
static void qkv_unit(void *context, unsigned member, size_t unit)
{
    struct forward *f = context;
    const struct model *m = f->model;
    const struct matrix *w = &m->layers[f->layer].qkv;
    size_t tiles = m->head_pad / KERNEL_TILE;
    struct unit_range u = unit_at(f, w, unit, f->n_rows, tiles);
    float *tile = product_to_tile(f, member, w, &u, m->head_pad);
    attention_store_head(f, (uint32_t)(u.tile_begin / tiles), u.row_begin, u.row_end, tile);
}

static void qkv(struct forward *f)
{
    const struct model *m = f->model;
    run_phase(f, unit_count(f, &m->layers[f->layer].qkv, f->n_rows, m->head_pad / KERNEL_TILE),
              qkv_unit);
}

/* attn = softmax(q K) V */
static void attention(struct forward *f)
{
    run_phase(f, (size_t)f->n_attend_units * f->model->params.n_kv_heads, attention_unit);
}

static void quantize_attention_unit(void *context, unsigned member, size_t row)
{
    const struct forward *f = context;
    linear_prepare(f, f->attn + row * f->heads_stride, f->model->layers[f->layer].o.n_in, row, 0,
                   &f->quantized_attn);
}

/* x += W in */
static void add_product_unit(void *context, unsigned member, size_t unit)
{
    const struct forward *f = context;
    struct linear l = f->residual;
    l.range = unit_at(f, l.w, unit, f->n_rows, TILES_PLAIN);
    l.out = f->x + l.range.row_begin * f->hidden_stride + l.range.tile_begin * KERNEL_TILE;
    linear_run(f, &l);
}

static void add_product(struct forward *f, const struct matrix *w, const float *in,
                        size_t in_stride, const struct quantized_rows *quantized)
{
    f->residual = (struct linear){
        .w = w,
        .x = in,
        .x_stride = in_stride,
        .quantized = quantized,
        .out_stride = f->hidden_stride,
        .accumulate = true,
    };
    run_phase(f, unit_count(f, w, f->n_rows, TILES_PLAIN), add_product_unit);
}

/* One block of MLP channels of a unit's rows: silu(gate) * up, to float or quantised. The tile
 * holds 16 gates, 16 ups, and again. */
static void activate(const struct forward *f, const struct unit_range *u, float *tile)
{
    size_t n_pairs = (u->tile_end - u->tile_begin) / 2;
    size_t stride = TILES_GATE_UP * KERNEL_TILE;
    size_t block = u->tile_begin / TILES_GATE_UP;

    for (size_t row = u->row_begin; row < u->row_end; row++) {
        float *in = tile + (row - u->row_begin) * stride;
        float *out = f->keeps_hidden ? f->mlp + row * f->mlp_stride + block * KERNEL_BLOCK : in;
        for (size_t i = 0; i < n_pairs; i++)
            f->kernels->silu_mul(in + 2 * i * KERNEL_TILE, in + (2 * i + 1) * KERNEL_TILE,
                                 KERNEL_TILE, out + i * KERNEL_TILE);
        linear_prepare(f, out, n_pairs * KERNEL_TILE, row, block, &f->quantized_mlp);
    }
}

/* mlp = silu(W_gate normed) * (W_up normed), 32 channels a unit: one block of down's input */
static void gate_up_unit(void *context, unsigned member, size_t unit)
{
    const struct forward *f = context;
    const struct matrix *w = &f->model->layers[f->layer].gate_up;
    struct unit_range u = unit_at(f, w, unit, f->n_rows, TILES_GATE_UP);
    activate(f, &u, product_to_tile(f, member, w, &u, TILES_GATE_UP * KERNEL_TILE));
}

static void gate_up(struct forward *f)
{
    const struct matrix *w = &f->model->layers[f->layer].gate_up;
    run_phase(f, unit_count(f, w, f->n_rows, TILES_GATE_UP), gate_up_unit);
}

/* logits = W_head rmsnorm(x), for the wanted rows only */
static void head_norm_unit(void *context, unsigned member, size_t i)
{
    const struct forward *f = context;
    const struct model_params *p = &f->model->params;
    float *out = f->normed + i * f->hidden_stride;
    f->kernels->rmsnorm(f->x + f->logit_rows[i] * f->hidden_stride, f->model->output_norm,
                        p->hidden, p->norm_width, p->rms_eps, out);
    linear_prepare(f, out, p->hidden, i, 0, &f->quantized_normed);
}

static void head_unit(void *context, unsigned member, size_t unit)
{
    const struct forward *f = context;
    const struct matrix *w = &f->model->head;
    struct unit_range u = unit_at(f, w, unit, f->n_logit_rows, TILES_HEAD);
    linear_run(f, &(struct linear){
                      .w = w,
                      .x = f->normed,
                      .x_stride = f->hidden_stride,
                      .quantized = &f->quantized_normed,
                      .range = u,
                      .out = f->logits + u.row_begin * f->vocab_stride + u.tile_begin * KERNEL_TILE,
                      .out_stride = f->vocab_stride,
                  });
}

static void head(struct forward *f)
{
    run_phase(f, f->n_logit_rows, head_norm_unit);
    run_phase(f, unit_count(f, &f->model->head, f->n_logit_rows, TILES_HEAD), head_unit);
}

static void run_part(struct forward *f, uint32_t l, enum forward_part part)
{
    const struct layer *layer = &f->model->layers[l];
    f->layer = l;
    f->kv_layer = l % kv_pool_layout(f->pool)->n_layers;
    switch (part) {
    case FORWARD_ATTN_NORM:
        norm(f, layer->attn_norm);
        break;
    case FORWARD_ATTN:
        qkv(f);
        attention(f);
        break;
    case FORWARD_ATTN_OUT:
        if (f->model->quantized)
            run_phase(f, f->n_rows, quantize_attention_unit);
        add_product(f, &layer->o, f->attn, f->heads_stride, &f->quantized_attn);
        break;
    case FORWARD_MLP_NORM:
        norm(f, layer->mlp_norm);
        break;
    case FORWARD_MLP:
        gate_up(f);
        break;
    case FORWARD_MLP_OUT:
        add_product(f, &layer->down, f->mlp, f->mlp_stride, &f->quantized_mlp);
        break;
    case FORWARD_PARTS:
        break;
    }
}

static void add_rows(struct forward *f, uint32_t i_slice)
{
    const struct forward_slice *slice = &f->slices[i_slice];
    assert(slice->is_prompt == f->slices[0].is_prompt);
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

void forward_begin(struct forward *f, const struct model *model, const struct kv_pool *pool,
                   const struct forward_slice *slices, size_t n_slices)
{
    bool is_prompt = n_slices && slices[0].is_prompt;
    f->model = model;
    f->quantized_normed.coarse = f->quantized_attn.coarse = f->quantized_mlp.coarse = model->coarse;
    const struct products *own = is_prompt ? kernels_prompt(f->kernels, model->coarse) : NULL;
    f->products = own ? own : &f->kernels->products;
    f->attend = is_prompt && model->quantized && f->kernels->attend_prompt
                    ? f->kernels->attend_prompt
                    : f->kernels->attend;
    f->pool = pool;
    f->slices = slices;
    f->keeps_hidden = true;
    f->n_rows = f->n_logit_rows = f->n_attend_units = 0;
    for (size_t i = 0; i < n_slices; i++)
        add_rows(f, (uint32_t)i);
}

const float *forward_run(struct forward *f, const struct model *model, const struct kv_pool *pool,
                         const struct forward_slice *slices, size_t n_slices, size_t *ret_stride)
{
    forward_begin(f, model, pool, slices, n_slices);
    f->keeps_hidden = !model->quantized;
    team_begin(f->team);
    run_phase(f, f->n_rows, embed_unit);
    for (uint32_t l = 0; l < model->params.n_layers; l++)
        for (unsigned part = 0; part < FORWARD_PARTS; part++)
            run_part(f, l, (enum forward_part)part);
    if (f->n_logit_rows)
        head(f);
    team_end(f->team);
    *ret_stride = f->vocab_stride;
    return f->logits;
}

void forward_part(struct forward *f, uint32_t layer, enum forward_part part)
{
    team_begin(f->team);
    run_part(f, layer, part);
    team_end(f->team);
}

struct forward_rows forward_rows(const struct forward *f, enum forward_buffer buffer)
{
    const struct model_params *p = &f->model->params;
    switch (buffer) {
    case FORWARD_NORMED:
        return (struct forward_rows){f->normed, f->n_rows, p->hidden, f->hidden_stride};
    case FORWARD_ATTENTION:
        return (struct forward_rows){f->attn, f->n_rows, p->n_heads * p->head_dim, f->heads_stride};
    case FORWARD_HIDDEN:
        return (struct forward_rows){f->mlp, f->n_rows, p->mlp, f->mlp_stride};
    case FORWARD_X:
        break;
    }
    return (struct forward_rows){f->x, f->n_rows, p->hidden, f->hidden_stride};
}
