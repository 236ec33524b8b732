/* Choosing the next token. Order, as vLLM and OpenAI users expect: penalties, bias, banned tokens,
 * temperature, min-p, top-k, top-p, draw. Every sum runs in a fixed order, so a seed gives the same
 * tokens everywhere. See sampler.h. */
#include "engine/sampling/sampler.h"

#include "engine/base/mem.h"
#include "engine/sampling/sampling_internal.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define SEEN 0x80000000u /* in counts[]: the token is in seen[] */
#define COUNT 0x7fffffffu

const struct sampling_params SAMPLING_DEFAULTS = {
    .temperature = 1, .top_p = 1, .repeat_penalty = 1};

struct sampling_scratch {
    uint32_t n_vocab;
    float *logits;                         /* [n_vocab] penalised copy */
    float *weights;                        /* [n_vocab] */
    struct sampling_candidate *candidates; /* [n_vocab] */
};

struct sampler {
    struct sampling_params params;
    uint32_t n_vocab;
    uint64_t random;       /* state of the generator */
    uint64_t random_draft; /* of the drafts' own */
    uint32_t *counts;      /* [n_vocab] in the output, with SEEN; NULL if there are no penalties */
    int32_t *seen;         /* [n_vocab] distinct tokens that penalties look at */
    size_t n_seen;
};

int sampling_scratch_open(uint32_t n_vocab, struct sampling_scratch **ret, struct error *err)
{
    struct sampling_scratch *s = mem_calloc(1, sizeof(*s));
    if (!s)
        return error_memory(err, "sampling buffers", sizeof(*s));
    s->n_vocab = n_vocab;
    s->logits = mem_array(n_vocab, sizeof(*s->logits));
    s->candidates = mem_array(n_vocab, sizeof(*s->candidates));
    s->weights = mem_array(n_vocab, sizeof(*s->weights));
    if (!s->logits || !s->weights || !s->candidates) {
        sampling_scratch_close(s);
        return error_memory(err, "sampling buffers", n_vocab * sizeof(*s->candidates));
    }
    *ret = s;
    return 0;
}

void sampling_scratch_close(struct sampling_scratch *scratch)
{
    if (!scratch)
        return;
    mem_free(scratch->logits);
    mem_free(scratch->weights);
    mem_free(scratch->candidates);
    mem_free(scratch);
}

/* SplitMix64 (Steele, Lea, Flood 2014): its output function, and one step. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Uniform in [0, 1), 53 bits. */
static double draw(uint64_t *random)
{
    *random += 0x9e3779b97f4a7c15u;
    return (double)(mix(*random) >> 11) * 0x1p-53;
}

static bool has_penalties(const struct sampling_params *p)
{
    return p->repeat_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
}

static bool is_token(const struct sampler *sampler, int32_t token)
{
    return token >= 0 && (uint32_t)token < sampler->n_vocab;
}

static void note(struct sampler *sampler, int32_t token)
{
    if (sampler->counts[token] & SEEN)
        return;
    sampler->counts[token] |= SEEN;
    sampler->seen[sampler->n_seen++] = token;
}

int sampler_open(const struct sampling_params *params, uint32_t choice_index, uint32_t n_vocab,
                 const int32_t *prompt, size_t n_prompt, struct sampler **ret_sampler,
                 struct error *err)
{
    struct sampler *s = mem_calloc(1, sizeof(*s));
    if (!s)
        return error_memory(err, "sampler", sizeof(*s));
    s->params = *params;
    s->n_vocab = n_vocab;
    s->random = mix(mix(params->seed + 1) + choice_index);
    s->random_draft = mix(s->random);
    if (has_penalties(params)) {
        s->counts = mem_calloc(n_vocab, sizeof(*s->counts));
        s->seen = mem_array(n_vocab, sizeof(*s->seen));
        if (!s->counts || !s->seen) {
            sampler_close(s);
            return error_memory(err, "token counts", n_vocab * sizeof(*s->counts));
        }
        for (size_t i = 0; i < n_prompt && params->repeat_penalty != 1; i++)
            if (is_token(s, prompt[i]))
                note(s, prompt[i]);
    }
    *ret_sampler = s;
    return 0;
}

void sampler_close(struct sampler *sampler)
{
    if (!sampler)
        return;
    mem_free(sampler->counts);
    mem_free(sampler->seen);
    mem_free(sampler);
}

void sampler_accept(struct sampler *sampler, int32_t token)
{
    if (!sampler->counts || !is_token(sampler, token))
        return;
    note(sampler, token);
    if ((sampler->counts[token] & COUNT) < COUNT)
        sampler->counts[token]++;
}

/* CTRL's (Keskar et al. 2019, section 4.1) for what was seen, OpenAI's for what was written. */
static void apply_penalties(const struct sampler *sampler, float *logits)
{
    const struct sampling_params *p = &sampler->params;

    for (size_t i = 0; i < sampler->n_seen; i++) {
        int32_t token = sampler->seen[i];
        uint32_t count = sampler->counts[token] & COUNT;
        float x = logits[token];
        if (p->repeat_penalty != 1)
            x = x > 0 ? x / p->repeat_penalty : x * p->repeat_penalty;
        if (count)
            x -= (float)count * p->frequency_penalty + p->presence_penalty;
        logits[token] = x;
    }
}

/* The logits to choose from: the model's, or a changed copy. */
static const float *adjust(const struct sampler *sampler, const float *logits,
                           const int32_t *banned, struct sampling_scratch *scratch)
{
    const struct sampling_params *p = &sampler->params;
    bool is_banned = banned && *banned >= 0;

    if (sampler->n_seen == 0 && p->n_bias == 0 && !is_banned)
        return logits;
    memcpy(scratch->logits, logits, sampler->n_vocab * sizeof(*logits));
    apply_penalties(sampler, scratch->logits);
    for (size_t i = 0; i < p->n_bias; i++)
        if (is_token(sampler, p->bias[i].token))
            scratch->logits[p->bias[i].token] += p->bias[i].bias;
    for (; is_banned && *banned >= 0; banned++)
        if (is_token(sampler, *banned))
            scratch->logits[*banned] = -INFINITY;
    return scratch->logits;
}

/* The lowest of the ids with the highest logit. NaN is no logit; if there is none at all, the
 * lowest id that is not banned. */
static int32_t argmax(const float *logits, uint32_t n, const int32_t *banned)
{
    size_t highest = select_argmax(logits, n);
    if (highest < n)
        return (int32_t)highest;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *b = banned;
        while (b && *b >= 0 && *b != (int32_t)i)
            b++;
        if (!b || *b < 0)
            return (int32_t)i;
    }
    return 0;
}

/* By min-p. The best token is probable whatever min_p says. */
static bool is_probable(const struct sampling_params *p, float weight)
{
    return weight == 1 || (weight > 0 && weight >= p->min_p);
}

/* A run of candidates inside the scratch. */
struct range {
    struct sampling_candidate *first;
    size_t n;
};

/* Temperature and min-p. max: the highest logit of all. */
static struct range keep_probable(const struct sampling_params *p, float max,
                                  struct sampling_candidate *c, size_t n)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        sampling_weigh(&c[i].logit, 1, max, 1.0 / p->temperature, &c[i].weight);
        if (is_probable(p, c[i].weight))
            c[kept++] = c[i];
    }
    return (struct range){c, kept};
}

/* Logits below it min-p surely removes: the margin is more than rounding takes. */
static float min_p_edge(const struct sampling_params *p, float max)
{
    double distance = p->temperature * (log(fmin(p->min_p, 1)) - 1e-3) - 1e-6 * fabs((double)max);
    return isinf(max) ? max : (float)(max + distance);
}

static double sum_weights(struct range r)
{
    double sum = 0;
    for (size_t i = 0; i < r.n; i++)
        sum += r.first[i].weight;
    return sum;
}

/* A weight such that the tokens above it surely have `wanted` together, and not many more. */
static float nucleus_edge(const float *weights, size_t n, double wanted)
{
    float edge = 0x1p-4f;
    while (edge > 0x1p-40f && !(sampling_sum_above(weights, n, edge) > wanted * (1 + 1e-5)))
        edge *= 0x1p-4f;
    return edge > 0x1p-40f ? edge : FLT_TRUE_MIN;
}

/* The whole vocabulary; of a nucleus only what may lie in it. *ret_total: weights of all. */
static struct range keep_all(const struct sampling_params *p, const float *logits, uint32_t n_vocab,
                             float max, struct sampling_scratch *scratch, double *ret_total)
{
    struct sampling_candidate *c = scratch->candidates;
    float *weights = scratch->weights;
    double total = sampling_weigh(logits, n_vocab, max, 1.0 / p->temperature, weights);
    float edge = p->top_p < 1 ? nucleus_edge(weights, n_vocab, p->top_p * total) : FLT_TRUE_MIN;
    size_t n = select_above(weights, logits, n_vocab, edge, c);

    for (size_t i = 0; i < n; i++)
        c[i].weight = weights[c[i].token];
    *ret_total = total;
    return (struct range){c, n};
}

/* The smallest set of the best tokens that together have top_p of the total. */
static struct range keep_top_p(struct range r, double total, float top_p)
{
    double sum = 0;
    size_t kept = 0;

    if (!(top_p < 1))
        return r;
    select_heapify(r.first, r.n);
    while (kept < r.n && (kept == 0 || sum < top_p * total)) {
        select_pop(r.first, r.n - kept);
        kept++;
        sum += r.first[r.n - kept].weight;
    }
    return (struct range){r.first + r.n - kept, kept};
}

static int32_t choose(struct range r, double random)
{
    double at = random * sum_weights(r);

    for (size_t i = 0; i < r.n; i++) {
        at -= r.first[i].weight;
        if (at < 0)
            return r.first[i].token;
    }
    return r.first[r.n - 1].token; /* rounding took the last bit */
}

/* The same without filters, over weights[n] of all tokens: whole blocks are passed over. `best` is
 * for when rounding took the last bit. */
static int32_t choose_of_all(const float *weights, size_t n, double total, double random,
                             int32_t best)
{
    double at = random * total;

    for (size_t i = 0; i < n; i += SAMPLING_BLOCK) {
        size_t n_block = sampling_block(i, n);
        double sum = sampling_sum(weights + i, n_block);
        if (at >= sum) {
            at -= sum;
            continue;
        }
        for (size_t j = i; j < i + n_block; j++) {
            at -= weights[j];
            if (at < 0)
                return (int32_t)j;
        }
    }
    return best;
}

/* The candidates left by temperature and filters, weighed. best: the highest logit's id. Min-p and
 * top-k each keep the best ones, so their order does not matter, and only what top-k leaves, or
 * lies near enough to the best for min-p, need be weighed. */
static struct range filter(const struct sampling_params *p, const float *logits, uint32_t n_vocab,
                           int32_t best, struct sampling_scratch *scratch)
{
    struct sampling_candidate *c = scratch->candidates;
    float max = logits[best];
    double total;
    struct range r;

    if (p->top_k > 0 && (uint32_t)p->top_k < n_vocab) {
        r = keep_probable(p, max, c, select_top(logits, n_vocab, (size_t)p->top_k, c));
        total = sum_weights(r);
    } else if (p->min_p > 0) {
        r = keep_probable(p, max, c, select_above(logits, logits, n_vocab, min_p_edge(p, max), c));
        total = sum_weights(r);
    } else {
        r = keep_all(p, logits, n_vocab, max, scratch, &total);
    }
    return keep_top_p(r, total, p->top_p);
}

static bool is_greedy(const struct sampling_params *p, float max)
{
    return !(p->temperature > 0) || !(max > -INFINITY);
}

int32_t sampler_sample(struct sampler *sampler, const float *logits, const int32_t *banned,
                       struct sampling_scratch *scratch)
{
    const struct sampling_params *p = &sampler->params;
    const float *x = adjust(sampler, logits, banned, scratch);
    int32_t best = argmax(x, sampler->n_vocab, banned);

    if (is_greedy(p, x[best]))
        return best;
    if (p->top_k <= 0 && !(p->top_p < 1) && !(p->min_p > 0)) {
        double total =
            sampling_weigh(x, sampler->n_vocab, x[best], 1.0 / p->temperature, scratch->weights);
        return choose_of_all(scratch->weights, sampler->n_vocab, total, draw(&sampler->random),
                             best);
    }
    return choose(filter(p, x, sampler->n_vocab, best, scratch), draw(&sampler->random));
}

void sampler_draft(struct sampler *sampler, const float *logits, const int32_t *banned,
                   struct sampling_scratch *scratch, struct sampling_draft *ret_draft)
{
    struct sampling_params p = sampler->params;
    const float *x = adjust(sampler, logits, banned, scratch);
    int32_t best = argmax(x, sampler->n_vocab, banned);

    ret_draft->token = best;
    ret_draft->n = 0;
    if (is_greedy(&p, x[best]))
        return;
    if (p.top_k <= 0 || p.top_k > SAMPLING_MOST_DRAFT)
        p.top_k = SAMPLING_MOST_DRAFT;
    struct range r = filter(&p, x, sampler->n_vocab, best, scratch);
    assert(r.n <= SAMPLING_MOST_DRAFT || sampler->n_vocab <= SAMPLING_MOST_DRAFT);
    double total = sum_weights(r);
    for (size_t i = 0; i < r.n; i++) {
        ret_draft->ids[i] = r.first[i].token;
        ret_draft->weights[i] = (float)(r.first[i].weight / total);
    }
    ret_draft->n = (uint32_t)r.n;
    ret_draft->token = choose(r, draw(&sampler->random_draft));
}

/* Leaves of every candidate's probability what it has above the draft's. */
static void subtract_draft(struct range r, double total, const struct sampling_draft *draft,
                           float *weights, uint32_t n_vocab)
{
    memset(weights, 0, n_vocab * sizeof(*weights));
    for (uint32_t i = 0; i < draft->n; i++)
        weights[draft->ids[i]] = draft->weights[i];
    for (size_t i = 0; i < r.n; i++) {
        float rest = (float)(r.first[i].weight / total) - weights[r.first[i].token];
        r.first[i].weight = rest > 0 ? rest : 0;
    }
}

int32_t sampler_verify(struct sampler *sampler, const float *logits, const int32_t *banned,
                       const struct sampling_draft *draft, struct sampling_scratch *scratch)
{
    const struct sampling_params *p = &sampler->params;
    const float *x = adjust(sampler, logits, banned, scratch);
    int32_t best = argmax(x, sampler->n_vocab, banned);
    float wanted = 0, drafted = 0;

    if (is_greedy(p, x[best]))
        return best;
    struct range r = filter(p, x, sampler->n_vocab, best, scratch);
    double total = sum_weights(r);
    for (size_t i = 0; i < r.n; i++)
        if (r.first[i].token == draft->token)
            wanted = (float)(r.first[i].weight / total);
    for (uint32_t i = 0; i < draft->n; i++)
        if (draft->ids[i] == draft->token)
            drafted = draft->weights[i];
    if (draw(&sampler->random) * drafted < wanted)
        return draft->token;
    subtract_draft(r, total, draft, scratch->weights, sampler->n_vocab);
    return choose(r, draw(&sampler->random));
}
