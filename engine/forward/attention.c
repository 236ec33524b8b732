/* Attention of a pass: what becomes of a head's q, k or v once computed, and the walk of the
 * queries over their sequence's pages. See forward_internal.h. */
#include "engine/forward/forward_internal.h"

#include <math.h>
#include <string.h>

static const struct forward_slice *slice_of(const struct forward *f, size_t row)
{
    return &f->slices[f->rows[row].slice];
}

static void rotate(const struct forward *f, float *x, uint32_t position)
{
    const struct model *m = f->model;
    size_t half = m->params.rope_dim / 2;
    f->kernels->rope(x, m->rope_cos + position * half, m->rope_sin + position * half, half);
}

static void store_keys(const struct forward *f, size_t row, uint32_t head, const float *k)
{
    uint32_t position = f->rows[row].position;
    uint32_t page = slice_of(f, row)->pages[position / KERNEL_PAGE_TOKENS];
    void *keys = kv_page_keys(f->pool, page, f->kv_layer, head);
    kv_store_key(f->pool, f->kernels, keys, position % KERNEL_PAGE_TOKENS, k);
}

static void store_values(const struct forward *f, size_t row, uint32_t head, const float *v)
{
    uint32_t position = f->rows[row].position;
    uint32_t page = slice_of(f, row)->pages[position / KERNEL_PAGE_TOKENS];
    void *values = kv_page_values(f->pool, page, f->kv_layer, head);
    kv_store_value(f->pool, f->kernels, values, position % KERNEL_PAGE_TOKENS, v);
}

static void store_query(struct forward *f, size_t row, uint32_t head, const float *q)
{
    const struct model_params *p = &f->model->params;
    uint32_t group = p->n_heads / p->n_kv_heads;
    uint32_t kv_head = head / group;
    float scale = 1.0f / sqrtf((float)p->head_dim);
    float *out =
        f->q + (((size_t)kv_head * f->max_rows + row) * group + head % group) * p->head_dim;
    for (size_t d = 0; d < p->head_dim; d++)
        out[d] = q[d] * scale;
}

/* `head` counts as in the packed qkv: q heads, k heads, v heads. tile[row - row_begin][head_pad].
 */
void attention_store_head(struct forward *f, uint32_t head, size_t row_begin, size_t row_end,
                          float *tile)
{
    const struct model *m = f->model;
    const struct model_params *p = &m->params;
    const struct layer *layer_weights = &m->layers[f->layer];
    const float *bias =
        layer_weights->qkv_bias ? layer_weights->qkv_bias + (size_t)head * m->head_pad : NULL;
    bool is_query = head < p->n_heads;
    bool is_key = !is_query && head < p->n_heads + p->n_kv_heads;
    const float *norm = is_query ? layer_weights->q_norm : is_key ? layer_weights->k_norm : NULL;

    for (size_t row = row_begin; row < row_end; row++) {
        float *x = tile + (row - row_begin) * m->head_pad;
        for (size_t d = 0; bias && d < p->head_dim; d++)
            x[d] += bias[d];
        if (norm)
            f->kernels->rmsnorm(x, norm, p->head_dim, p->head_dim, p->rms_eps, x);
        if (is_query || is_key)
            rotate(f, x, f->rows[row].position);
        if (is_query)
            store_query(f, row, head, x);
        else if (is_key)
            store_keys(f, row, head - p->n_heads, x);
        else
            store_values(f, row, head - p->n_heads - p->n_kv_heads, x);
    }
}

/* Page i of the slice's first n_pages: in place if the kernel can read it so, else converted to
 * scratch. */
static void load_page(const struct forward *f, const struct forward_slice *slice, size_t i,
                      size_t n_pages, uint32_t kv_head, const struct member_scratch *scratch,
                      struct attend_page *a)
{
    const void *keys = kv_page_keys(f->pool, slice->pages[i], f->kv_layer, kv_head);
    const void *values = kv_page_values(f->pool, slice->pages[i], f->kv_layer, kv_head);
    const float *float_keys, *float_values;
    a->keys = keys;
    a->values = values;
    a->next_keys = NULL;
    a->is_half = kv_is_half(f->pool);
    if (a->is_half) {
        if (i + 1 < n_pages)
            a->next_keys = kv_page_keys(f->pool, slice->pages[i + 1], f->kv_layer, kv_head);
        return;
    }
    kv_load(f->pool, f->kernels, keys, values, scratch->keys, scratch->values, &float_keys,
            &float_values);
    a->keys = float_keys;
    a->values = float_values;
}

/* acc / sum of every query to its place in attn. */
static void store_attention(struct forward *f, const struct attend_unit *u, uint32_t kv_head,
                            const float *state)
{
    const struct model_params *p = &f->model->params;
    uint32_t group = p->n_heads / p->n_kv_heads;
    for (size_t i = 0; i < (size_t)u->n_rows * group; i++) {
        const float *s = state + i * ATTEND_STATE(p->head_dim);
        float *out = f->attn + (u->row + i / group) * f->heads_stride +
                     (kv_head * group + i % group) * p->head_dim;
        float inverse = 1.0f / s[1];
        for (size_t d = 0; d < p->head_dim; d++)
            out[d] = s[2 + d] * inverse;
    }
}

void attention_unit(void *context, unsigned member, size_t unit)
{
    struct forward *f = context;
    const struct model_params *p = &f->model->params;
    const struct member_scratch *scratch = &f->scratch[member];
    const struct attend_unit *u = &f->attend_units[unit / p->n_kv_heads];
    uint32_t kv_head = (uint32_t)(unit % p->n_kv_heads);
    const struct forward_slice *slice = &f->slices[u->slice];
    uint32_t group = p->n_heads / p->n_kv_heads;
    uint32_t first = f->rows[u->row].position;
    struct attend_page a = {
        .q = f->q + ((size_t)kv_head * f->max_rows + u->row) * group * p->head_dim,
        .q_stride = p->head_dim,
        .n_q = (size_t)u->n_rows * group,
        .head_dim = p->head_dim,
        .n_keys = scratch->n_keys,
        .state = scratch->state,
    };

    for (size_t i = 0; i < a.n_q; i++) {
        float *s = a.state + i * ATTEND_STATE(p->head_dim);
        memset(s, 0, ATTEND_STATE(p->head_dim) * sizeof(float));
        s[0] = -INFINITY;
    }
    size_t n_pages = (first + u->n_rows + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    for (size_t page = 0; page < n_pages; page++) {
        load_page(f, slice, page, n_pages, kv_head, scratch, &a);
        for (size_t i = 0; i < a.n_q; i++) {
            size_t end = first + i / group + 1; /* causal: itself and what came before */
            size_t begin = page * KERNEL_PAGE_TOKENS;
            size_t n = end > begin ? end - begin : 0;
            scratch->n_keys[i] = (uint8_t)(n < KERNEL_PAGE_TOKENS ? n : KERNEL_PAGE_TOKENS);
        }
        f->attend(&a);
    }
    store_attention(f, u, kv_head, a.state);
}
