/* Shadow checks: an answer of the twin once more, through both models. Each token after the first
 * gets the logits that the twin had for it, on the full model's K and V of the prompt and its own
 * of the answer, and those of the full model, which reads all of it itself. Counted: how often the
 * best token is the same, and KL(full || twin) in nats. See background.h. */
#include "engine/base/mem.h"
#include "engine/pool/background.h"

#include <math.h>
#include <string.h>

#define SHADOW_ROWS 16

struct comparison {
    const float *full, *twin; /* [n][stride], [n][n_vocab] */
    size_t stride;
    uint32_t n_vocab;
    struct shadow_sums rows[SHADOW_ROWS];
};

struct softmax {
    double log_sum;
    uint32_t best;
};

static struct softmax softmax_of(const float *logits, uint32_t n)
{
    struct softmax s = {0};
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[s.best])
            s.best = i;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - logits[s.best]);
    s.log_sum = logits[s.best] + log(sum);
    return s;
}

static void compare_unit(void *context, unsigned member, size_t row)
{
    struct comparison *c = context;
    const float *full = c->full + row * c->stride, *twin = c->twin + row * c->n_vocab;
    struct softmax a = softmax_of(full, c->n_vocab), b = softmax_of(twin, c->n_vocab);
    double kl = 0;
    for (uint32_t i = 0; i < c->n_vocab; i++) {
        double log_p = full[i] - a.log_sum, log_q = twin[i] - b.log_sum;
        double prob = exp(log_p);
        kl += prob > 0 ? prob * (log_p - log_q) : 0; /* p log p is 0 in the limit */
    }
    c->rows[row] = (struct shadow_sums){1, a.best == b.best, kl};
}

static const float *run(struct prefill *p, const struct model *model,
                        const struct background_job *job, const struct kv_table *table, uint32_t n,
                        size_t *ret_stride)
{
    const struct forward_slice slice = {
        .tokens = job->tokens + job->position,
        .n_tokens = n,
        .position = job->position,
        .pages = table->pages,
        .logits = LOGITS_ALL,
    };
    background_count(p->engine, model, n, true);
    return forward_run(p->engine->prefill.forward, model, p->engine->kv, &slice, 1, ret_stride);
}

/* Row i is what token position + i + 1 was drawn from. */
static void compare_rows(struct prefill *p, struct background_job *job, uint32_t n)
{
    struct engine *engine = p->engine;
    uint32_t n_vocab = engine->info.vocab_size;
    struct comparison c = {.n_vocab = n_vocab, .twin = job->shadow.logits};
    size_t stride;
    const float *twin = run(p, engine->pruned, job, &job->shadow.table, n, &stride);
    for (uint32_t i = 0; i < n; i++)
        memcpy(job->shadow.logits + (size_t)i * n_vocab, twin + i * stride,
               n_vocab * sizeof(*twin));
    c.full = run(p, engine->full, job, &job->table, n, &c.stride);
    team_for(engine->prefill.team, n, compare_unit, &c);
    for (uint32_t i = 0; i < n; i++) {
        job->shadow.sums.n_tokens += c.rows[i].n_tokens;
        job->shadow.sums.n_agreed += c.rows[i].n_agreed;
        job->shadow.sums.kl += c.rows[i].kl;
    }
    job->position += n;
}

static void count_answer(struct engine *engine, const struct shadow_sums *sums)
{
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.shadow_answers++;
    engine->stats.shadow_tokens += sums->n_tokens;
    engine->stats.shadow_agreed += sums->n_agreed;
    engine->stats.shadow_kl += sums->kl;
    pthread_mutex_unlock(&engine->stats_lock);
}

static bool open_shadow(struct prefill *p, struct background_job *job)
{
    struct error err;
    size_t n;
    if (!mem_mul(SHADOW_ROWS, p->engine->info.vocab_size, &n))
        return false;
    job->shadow.logits = mem_array(n, sizeof(float));
    return job->shadow.logits && kv_table_open(&job->shadow.table, job->n_tokens, &err) == 0;
}

/* Beside the prompt the twin has a table of its own. */
static bool begin_answer(struct prefill *p, struct background_job *job)
{
    struct kv_table *table = &job->shadow.table;
    return table->n_pages || kv_table_fork(p->engine->kv, &job->table, job->n_prompt, table);
}

enum background_progress shadow_step(struct prefill *p, struct background_job *job)
{
    struct kv_pool *kv = p->engine->kv;
    uint32_t end = job->n_tokens - 1; /* nothing was drawn from the last token's logits */
    if (!job->shadow.logits && !open_shadow(p, job))
        return BACKGROUND_OVER;
    if (job->position < job->n_prompt)
        return background_read(p, job, job->n_prompt) ? BACKGROUND_GOES_ON : BACKGROUND_OVER;
    uint32_t n = end - job->position < SHADOW_ROWS ? end - job->position : SHADOW_ROWS;
    if (!begin_answer(p, job) || !kv_table_grow(kv, &job->table, job->position + n) ||
        !kv_table_grow(kv, &job->shadow.table, job->position + n))
        return BACKGROUND_OVER;
    compare_rows(p, job, n);
    if (job->position < end)
        return BACKGROUND_GOES_ON;
    count_answer(p->engine, &job->shadow.sums);
    return BACKGROUND_OVER;
}
