/* Likelihood of documents, and how far the decoder's distribution lies from the full model's, token
 * for token. Waves of documents go through the full model first, whose log-probabilities over the
 * vocabulary are kept until the system has been through the same wave. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <math.h>
#include <stdatomic.h>

#define WAVE_BYTES ((size_t)512 << 20) /* for the full model's rows; one document at least */

/* What is known of a scored token. */
struct token_measure {
    float nll, kl, full_nll;
    bool agrees; /* with the full model on the likeliest token */
};

struct nll {
    struct eval *eval;
    uint32_t n_prompt, n_score, n_vocab;
    uint32_t n_skip; /* 1: the decoder reads the prompt's last token again */
    struct eval_documents documents;
    struct token_measure *measures; /* [documents.n][n_score] */
    size_t wave_begin;
    struct full_rows rows;     /* not opened for the system full */
    atomic_size_t n_different; /* rows of the file that the full model gives otherwise */
    struct engine_given given;
};

static int make(struct nll *n, size_t i, struct engine_request *request, uint32_t n_skip)
{
    const int32_t *tokens = n->documents.list[n->wave_begin + i].tokens;
    n->given = (struct engine_given){tokens + n->n_prompt - n_skip, n->n_score + n_skip};
    request->tokens = tokens;
    request->n_tokens = n->n_prompt - n_skip;
    request->given = &n->given;
    return 0;
}

static int take(void *user, size_t i, const struct engine_output *output, struct error *err)
{
    struct nll *n = user;
    n->eval->report->n_tokens += output->n_tokens;
    return 0;
}

/* Where a scored token's measures and the full model's row lie. */
static struct token_measure *measure_of(struct nll *n, const struct flight_slot *slot, uint32_t t)
{
    return &n->measures[(n->wave_begin + slot->item) * n->n_score + t];
}

static int32_t token_of(const struct nll *n, const struct flight_slot *slot, uint32_t t)
{
    return n->documents.list[n->wave_begin + slot->item].tokens[n->n_prompt + t];
}

static float *full_row_of(const struct nll *n, const struct flight_slot *slot, uint32_t t)
{
    size_t document = n->rows.map ? n->wave_begin + slot->item : slot->item;
    return n->rows.values + document * n->rows.document_floats + t * n->rows.row_floats;
}

/* The log of the sum of exponentials, the likeliest token, and the NLL of `token`. */
static float weigh(const float *logits, uint32_t n_vocab, int32_t token, int32_t *ret_likeliest,
                   float *ret_nll)
{
    struct token_logprob best = {0};
    float logprob;
    sampling_logprobs(logits, n_vocab, token, 1, &logprob, &best);
    *ret_likeliest = best.token;
    *ret_nll = -logprob;
    return logits[best.token] - best.logprob;
}

/* The full model as the system. */
static void see_alone(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                      uint32_t n_vocab)
{
    const struct flight_slot *slot = user;
    struct nll *n = slot->flight->user;
    struct token_measure *m = measure_of(n, slot, i_token);
    int32_t likeliest;
    weigh(logits, n_vocab, token_of(n, slot, i_token), &likeliest, &m->nll);
    m->full_nll = m->nll;
    m->agrees = true;
}

/* The full model as what others are measured by. A file's rows are compared instead. */
static void see_full(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                     uint32_t n_vocab)
{
    const struct flight_slot *slot = user;
    struct nll *n = slot->flight->user;
    float *row = full_row_of(n, slot, i_token);
    int32_t likeliest;
    float nll;
    float log_sum = weigh(logits, n_vocab, 0, &likeliest, &nll);
    bool is_different = false;
    for (uint32_t i = 0; i < n_vocab; i++) {
        float logprob = logits[i] - log_sum;
        is_different |= row[i] != logprob;
        if (!n->rows.is_whole)
            row[i] = logprob;
    }
    if (is_different && n->rows.is_whole)
        atomic_fetch_add(&n->n_different, 1);
}

/* KL(full || system) = sum p (log p - log q), p the full model's. */
static void see_system(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                       uint32_t n_vocab)
{
    const struct flight_slot *slot = user;
    struct nll *n = slot->flight->user;
    if (i_token < n->n_skip)
        return;
    uint32_t t = i_token - n->n_skip;
    const float *row = full_row_of(n, slot, t);
    struct token_measure *m = measure_of(n, slot, t);
    int32_t likeliest;
    float log_sum = weigh(logits, n_vocab, token_of(n, slot, t), &likeliest, &m->nll);
    uint32_t best = 0;
    double kl = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        kl += (double)(expf(row[i]) * (row[i] - (logits[i] - log_sum)));
        if (row[i] > row[best])
            best = i;
    }
    m->kl = (float)kl;
    m->full_nll = -row[token_of(n, slot, t)];
    m->agrees = likeliest == (int32_t)best;
}

static int make_full(void *user, size_t i, struct engine_request *request, struct error *err)
{
    struct nll *n = user;
    request->decode = DECODE_FULL;
    request->on_logits = n->eval->options->system == EVAL_FULL ? see_alone : see_full;
    return make(n, i, request, 0);
}

static int make_system(void *user, size_t i, struct engine_request *request, struct error *err)
{
    struct nll *n = user;
    request->decode = n->eval->decode;
    request->on_logits = see_system;
    return make(n, i, request, n->n_skip);
}

/* The full model on the wave, or on one document of all where a file has its rows, or on none where
 * they are to be taken as they are. */
static int run_full(struct nll *n, struct flight *flight, struct error *err)
{
    size_t n_items = flight->n_items;
    if (n->rows.is_whole)
        flight->n_items = n->wave_begin || n->eval->options->rows_as_given ? 0 : 1;
    int rc = flight_run(flight, err);
    flight->n_items = n_items;
    if (rc == 0 && atomic_load(&n->n_different))
        rc = error_set(err, ERROR_INVALID,
                       "full-rows %s: made by another model or with other settings; remove it",
                       n->eval->options->full_rows_path);
    return rc;
}

static int run_wave(struct nll *n, size_t n_wave, struct error *err)
{
    struct eval *eval = n->eval;
    double n_documents = (double)n->documents.n, width = (double)n_wave / n_documents;
    bool is_pair = eval->options->system != EVAL_FULL;
    struct flight flight = {
        .engine = eval->full,
        .n_items = n_wave,
        .user = n,
        .make = make_full,
        .take = take,
        .eval = eval,
        .share_begin = (double)n->wave_begin / n_documents,
        .share_width = is_pair ? width / 2 : width,
    };
    uint64_t n_before = eval->report->n_tokens;
    int rc = run_full(n, &flight, err);
    if (rc || !is_pair)
        return rc;
    eval->report->n_tokens = n_before; /* the system's only */
    flight.engine = eval->system;
    flight.make = make_system;
    flight.share_begin += width / 2;
    return flight_run(&flight, err);
}

static int run_waves(struct nll *n, size_t most, struct error *err)
{
    int rc = 0;
    while (rc == 0 && n->wave_begin < n->documents.n) {
        size_t rest = n->documents.n - n->wave_begin;
        size_t n_wave = rest < most ? rest : most;
        rc = run_wave(n, n_wave, err);
        n->wave_begin += n_wave;
    }
    return rc;
}

/* Means over the documents' tokens begin..end-1. */
static struct eval_bucket bucket_of(const struct nll *n, uint32_t begin, uint32_t end)
{
    struct eval_bucket b = {.begin = begin, .end = end};
    for (size_t d = 0; d < n->documents.n; d++) {
        for (uint32_t t = begin; t < end; t++) {
            const struct token_measure *m = &n->measures[d * n->n_score + t];
            b.nll += (double)m->nll;
            b.kl += (double)m->kl;
            b.agree += m->agrees;
        }
    }
    double total = (double)n->documents.n * (end - begin);
    b.nll /= total;
    b.kl /= total;
    b.agree /= total;
    return b;
}

/* 0, 1-15, 16-31, 32-63, 64-127, 128-255, ... */
static void fill_buckets(struct nll *n)
{
    struct eval_report *report = n->eval->report;
    for (uint32_t begin = 0, end = 1; begin < n->n_score && report->n_buckets < EVAL_MAX_BUCKETS;) {
        report->buckets[report->n_buckets++] =
            bucket_of(n, begin, end < n->n_score ? end : n->n_score);
        begin = end;
        end = end == 1 ? 16 : end * 2;
    }
}

static int fill_report(struct nll *n, struct error *err)
{
    struct eval_report *report = n->eval->report;
    int rc = report_open_rows(report, n->documents.n, err);
    if (rc)
        return rc;
    report_add_metric(report, "nll", true);
    report_add_metric(report, "kl", true);
    report_add_metric(report, "agree", true);
    for (size_t d = 0; d < n->documents.n; d++) {
        double *values = report->values + d * EVAL_MAX_METRICS;
        report->lines[d] = n->documents.list[d].line;
        report->weights[d] = n->n_score;
        for (uint32_t t = 0; t < n->n_score; t++) {
            const struct token_measure *m = &n->measures[d * n->n_score + t];
            values[0] += (double)m->nll;
            values[1] += (double)m->kl;
            values[2] += m->agrees;
            report->full_nll += (double)m->full_nll / ((double)n->documents.n * n->n_score);
        }
        for (size_t m = 0; m < 3; m++)
            values[m] /= n->n_score;
    }
    fill_buckets(n);
    return 0;
}

static int run_all(struct nll *n, struct error *err)
{
    size_t n_measures, most = FLIGHT_MOST;
    bool is_pair = n->eval->options->system != EVAL_FULL;
    int rc = eval_documents_read(n->eval, (size_t)n->n_prompt + n->n_score, &n->documents, err);
    if (rc)
        return rc;
    if (mem_mul(n->documents.n, n->n_score, &n_measures))
        n->measures = mem_calloc(n_measures, sizeof(*n->measures));
    if (!n->measures)
        return error_memory(err, "measures", n->documents.n);
    if (is_pair)
        rc = full_rows_open(n->eval->options->full_rows_path, &n->documents, n->n_score, n->n_vocab,
                            WAVE_BYTES, &n->rows, err);
    if (is_pair && n->rows.n_documents < most)
        most = n->rows.n_documents;
    if (rc == 0)
        rc = run_waves(n, most, err);
    if (rc == 0)
        full_rows_mark_whole(&n->rows);
    return rc ? rc : fill_report(n, err);
}

int eval_nll(struct eval *eval, struct error *err)
{
    struct engine_info full, system;
    struct nll n = {
        .eval = eval,
        .n_prompt = eval->report->prompt_tokens,
        .n_score = eval->report->score_tokens,
    };
    engine_get_info(eval->full, &full);
    engine_get_info(eval->system, &system);
    if (full.vocab_size != system.vocab_size)
        return error_set(err, ERROR_INVALID,
                         "pruned: %u tokens in its vocabulary, %u in the model's",
                         system.vocab_size, full.vocab_size);
    if ((uint64_t)n.n_prompt + n.n_score > full.context)
        return error_set(
            err, ERROR_INVALID,
            "prompt-tokens and score-tokens: %llu together, the context has room for %u",
            (unsigned long long)n.n_prompt + n.n_score, full.context);
    n.n_vocab = full.vocab_size;
    n.n_skip = eval->options->decoder_first && n.n_prompt > 1 ? 1 : 0;
    int rc = run_all(&n, err);
    eval_documents_free(&n.documents);
    mem_free(n.measures);
    full_rows_close(&n.rows);
    return rc;
}
