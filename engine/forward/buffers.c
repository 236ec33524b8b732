/* The buffers of a pass, sized once for all models that will use them. See forward_internal.h. */
#include "engine/base/mem.h"
#include "engine/forward/forward_internal.h"

#include <string.h>

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* What the models need at most. Heads and head_dim are the same in a pair, but not assumed. */
struct sizes {
    size_t hidden, heads, q, mlp, vocab, tile, head_dim, group;
};

static void add_sizes(const struct model *m, struct sizes *s)
{
    const struct model_params *p = &m->params;
    s->hidden = max_size(s->hidden, round_up(p->hidden, KERNEL_TILE));
    s->q = max_size(s->q, (size_t)p->n_heads * p->head_dim);
    s->heads = max_size(s->heads, round_up(s->q, KERNEL_BLOCK));
    s->mlp = max_size(s->mlp, round_up(p->mlp, KERNEL_TILE));
    s->vocab = max_size(s->vocab, round_up(p->vocab_size, KERNEL_TILE));
    s->tile = max_size(s->tile, max_size(m->head_pad, TILES_GATE_UP * KERNEL_TILE));
    s->head_dim = max_size(s->head_dim, p->head_dim);
    s->group = max_size(s->group, p->n_heads / p->n_kv_heads);
}

/* Zeroed: float products also run over rows that hold nothing, and must find finite numbers.
 * Aligned: a row of a tile across two lines of a cache takes two loads. */
static void *zeroed(size_t rows, size_t columns, size_t size, size_t *total)
{
    size_t n;
    if (!mem_mul(rows, columns, &n) || !mem_mul(n, size, &n))
        return NULL;
    void *p = mem_alloc_aligned(n);
    if (p)
        memset(p, 0, n);
    *total += n;
    return p;
}

static float *floats(size_t rows, size_t columns, size_t *total)
{
    return zeroed(rows, columns, sizeof(float), total);
}

static bool open_quantized(struct quantized_rows *r, size_t rows, size_t columns, size_t *total)
{
    /* odd, so that the rows of a tile do not compete for the same lines of a cache */
    r->stride = (columns + KERNEL_BLOCK - 1) / KERNEL_BLOCK | 1;
    r->q = zeroed(rows, r->stride, KERNEL_BLOCK * sizeof(*r->q), total);
    r->scale = zeroed(rows, r->stride, sizeof(*r->scale), total);
    r->sum = zeroed(rows, r->stride, sizeof(*r->sum), total);
    return r->q && r->scale && r->sum;
}

static bool open_scratch(struct member_scratch *scratch, const struct sizes *s, size_t *total)
{
    size_t n_q = ATTEND_ROWS * s->group;
    scratch->tile = floats(KERNEL_MOST_UNIT_ROWS, s->tile, total);
    scratch->keys = floats(s->head_dim, KERNEL_PAGE_TOKENS, total);
    scratch->values = floats(KERNEL_PAGE_TOKENS, s->head_dim, total);
    scratch->state = floats(n_q, ATTEND_STATE(s->head_dim), total);
    scratch->n_keys = mem_calloc(n_q, 1);
    return scratch->tile && scratch->keys && scratch->values && scratch->state && scratch->n_keys;
}

static bool open_buffers(struct forward *f, const struct sizes *s, size_t *total)
{
    f->hidden_stride = s->hidden;
    f->heads_stride = s->heads;
    f->mlp_stride = round_up(s->mlp, KERNEL_BLOCK);
    f->vocab_stride = s->vocab;
    f->rows = mem_calloc(f->max_rows, sizeof(*f->rows));
    f->attend_units = mem_calloc(f->max_rows, sizeof(*f->attend_units));
    f->logit_rows = mem_calloc(f->max_logit_rows, sizeof(*f->logit_rows));
    f->x = floats(f->max_rows, f->hidden_stride, total);
    f->normed = floats(f->max_rows, f->hidden_stride, total);
    f->q = floats(f->max_rows, s->q, total);
    f->attn = floats(f->max_rows, f->heads_stride, total);
    f->mlp = floats(f->max_rows, f->mlp_stride, total);
    f->logits = floats(f->max_logit_rows, f->vocab_stride, total);
    f->scratch = mem_calloc(crew_size(team_crew(f->team)), sizeof(*f->scratch));
    if (!f->rows || !f->attend_units || !f->logit_rows || !f->x || !f->normed || !f->q ||
        !f->attn || !f->mlp || !f->logits || !f->scratch)
        return false;
    if (!open_quantized(&f->quantized_normed, f->max_rows, s->hidden, total) ||
        !open_quantized(&f->quantized_attn, f->max_rows, s->heads, total) ||
        !open_quantized(&f->quantized_mlp, f->max_rows, s->mlp, total))
        return false;
    for (unsigned i = 0; i < crew_size(team_crew(f->team)); i++)
        if (!open_scratch(&f->scratch[i], s, total))
            return false;
    return true;
}

int forward_open(const struct model *const *models, size_t n_models, const struct kernels *kernels,
                 struct team *team, uint32_t max_rows, uint32_t max_logit_rows,
                 struct forward **ret_forward, struct error *err)
{
    struct sizes sizes = {0};
    size_t total = 0;
    struct forward *f = mem_calloc(1, sizeof(*f));
    if (!f)
        return error_memory(err, "forward buffers", sizeof(*f));
    for (size_t i = 0; i < n_models; i++)
        add_sizes(models[i], &sizes);
    f->kernels = kernels;
    f->team = team;
    f->max_logit_rows = (uint32_t)round_up(max_logit_rows, KERNEL_F32_ROWS);
    f->max_rows = (uint32_t)round_up(max_size(max_rows, max_logit_rows), KERNEL_F32_ROWS);
    if (!open_buffers(f, &sizes, &total)) {
        forward_close(f);
        return error_memory(err, "forward buffers", total);
    }
    *ret_forward = f;
    return 0;
}

static void close_quantized(struct quantized_rows *r)
{
    mem_free(r->q);
    mem_free(r->scale);
    mem_free(r->sum);
}

void forward_close(struct forward *f)
{
    if (!f)
        return;
    for (unsigned i = 0; f->scratch && i < crew_size(team_crew(f->team)); i++) {
        mem_free(f->scratch[i].tile);
        mem_free(f->scratch[i].keys);
        mem_free(f->scratch[i].values);
        mem_free(f->scratch[i].state);
        mem_free(f->scratch[i].n_keys);
    }
    mem_free(f->scratch);
    close_quantized(&f->quantized_normed);
    close_quantized(&f->quantized_attn);
    close_quantized(&f->quantized_mlp);
    mem_free(f->rows);
    mem_free(f->attend_units);
    mem_free(f->logit_rows);
    mem_free(f->x);
    mem_free(f->normed);
    mem_free(f->q);
    mem_free(f->attn);
    mem_free(f->mlp);
    mem_free(f->logits);
    mem_free(f);
}
