/* What the files of engine/eval share. */
#ifndef OVERFILL_ENGINE_EVAL_EVAL_INTERNAL_H
#define OVERFILL_ENGINE_EVAL_EVAL_INTERNAL_H

#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/eval/eval.h"

#include <cjson/cJSON.h>

/* The finish of splitmix64 (Steele, Lea, Flood 2014): of a counter it makes random numbers, and FNV
 * alone leaves the high bits of similar texts alike. */
static inline uint64_t eval_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}
static inline uint64_t eval_hash(const void *data, size_t bytes)
{
    return eval_mix(hash_bytes(HASH_START, data, bytes));
}

/* rows.c: a data file's rows in the order of their hashes. */
struct eval_row {
    uint64_t hash;
    size_t line; /* from 1 */
    const char *text;
    size_t len;
};
struct eval_rows {
    const char *path;
    bool is_jsonl;
    struct buf data; /* the whole file */
    struct eval_row *list;
    size_t n;
};
int eval_rows_read(const char *path, struct eval_rows *ret_rows, struct error *err);
void eval_rows_free(struct eval_rows *rows);
/* The row's object; an error names file and line. The caller deletes it. */
int eval_row_parse(const struct eval_rows *rows, const struct eval_row *row, cJSON **ret_json,
                   struct error *err);
/* A string field that must be there, or "" is an error too. */
int eval_row_string(const struct eval_rows *rows, const struct eval_row *row, const cJSON *json,
                    const char *key, const char **ret_text, struct error *err);
int eval_row_error(const struct eval_rows *rows, const struct eval_row *row, const char *what,
                   struct error *err);
static inline void eval_json_cleanup(cJSON **json)
{
    cJSON_Delete(*json);
}
#define _cleanup_json_ __attribute__((cleanup(eval_json_cleanup)))

/* A run. */
struct eval {
    const struct eval_options *options;
    struct eval_rows rows;
    struct engine *full;   /* NULL where the task and the system do without it */
    struct engine *system; /* may be the same */
    enum decode_mode decode;
    struct eval_report *report;
    const char *what; /* of the progress */
};

/* documents.c: what the nll task scores. */
struct eval_document {
    uint64_t hash;
    size_t line;     /* of the file, or the number of the piece of text */
    int32_t *tokens; /* [n_tokens] */
};
struct eval_documents {
    struct eval_document *list;
    size_t n;
    size_t n_tokens; /* of each */
};
int eval_documents_read(struct eval *eval, size_t n_tokens, struct eval_documents *ret_documents,
                        struct error *err);
void eval_documents_free(struct eval_documents *documents);

/* full_rows.c: rows [n_documents][n_score][n_vocab] of the full model's log-probabilities. */
struct full_rows {
    float *values;
    size_t n_documents; /* that there is room for */
    size_t row_floats, document_floats, document_bytes;
    bool is_whole;    /* the file held them all */
    void *map;        /* NULL: in memory */
    size_t map_bytes; /* of the file */
};
/* path NULL: as many documents as memory_bytes hold, one at least. */
int full_rows_open(const char *path, const struct eval_documents *documents, size_t n_score,
                   size_t n_vocab, size_t memory_bytes, struct full_rows *ret_rows,
                   struct error *err);
void full_rows_mark_whole(struct full_rows *rows);
void full_rows_close(struct full_rows *rows);

/* flight.c: many requests through an engine, some at a time. make fills in what it wants to ask for
 * item i, take sees every output of it; both on the calling thread. */
struct flight;
struct flight_slot { /* what engine_logits_fn gets as its user */
    struct flight *flight;
    size_t item;
    uint64_t id;
    bool busy;
};
struct flight {
    struct engine *engine;
    size_t n_items;
    size_t most; /* in flight */
    void *user;
    int (*make)(void *user, size_t i, struct engine_request *request, struct error *err);
    int (*take)(void *user, size_t i, const struct engine_output *output, struct error *err);
    const struct eval *eval; /* for the progress */
    double share_begin, share_width;
};
#define FLIGHT_MOST 48
/* At the first failure the others are cancelled, and nothing is in flight any more on return. */
int flight_run(struct flight *flight, struct error *err);

/* likelihood.c: prompts with given continuations, and what a decoder says of these. */
struct continuation {
    struct token_list tokens;
    size_t n_characters;  /* of its text; choices only */
    double logprob;       /* of all tokens together */
    uint32_t n_likeliest; /* tokens that were the likeliest at their place */
    bool has_begun;       /* the token that does not count has come */
};
struct scored {
    const struct eval_row *row;
    struct token_list prompt;
    struct continuation *list;
    uint32_t n;
    uint32_t gold; /* the right one; choices only */
};
void scored_free(struct scored *items, size_t n);
/* A token moves from the prompt's end to the front of every continuation, so that the decoder
 * scores the whole continuation; it does not count. */
int likelihood_run(struct eval *eval, struct engine *engine, enum decode_mode decode,
                   struct scored *items, size_t n, bool decoder_first, double share_begin,
                   double share_width, struct error *err);

/* The tasks: nll.c, choices.c and answers.c. They open the report's rows and fill them. */
int eval_nll(struct eval *eval, struct error *err);
int eval_lambada(struct eval *eval, struct error *err);
int eval_choices(struct eval *eval, struct error *err);
int eval_generate(struct eval *eval, struct error *err);
int eval_answers(struct eval *eval, struct error *err);

/* report.c */
int report_open_rows(struct eval_report *report, size_t n, struct error *err);
void report_add_metric(struct eval_report *report, const char *name, bool by_token);
void report_add_exponential(struct eval_report *report, const char *name, int of);
/* Means and intervals from the rows. */
int report_finish(struct eval_report *report, uint64_t seed, struct error *err);

/* text.c: scores of a text against a reference. Words are runs of letters and digits, lower case.
 */
double text_rouge_l(const char *text, const char *reference);
double text_exact_match(const char *text, const char *reference); /* as SQuAD's script has it */
double text_f1(const char *text, const char *reference);
/* Of n-grams of tokens: different ones by all; 1 for fewer than n tokens. O(n_tokens squared). */
double text_distinct(const int32_t *tokens, size_t n_tokens, size_t n);

/* A list of this task's rows: at most `limit`, or all of them. */
static inline size_t eval_most_rows(const struct eval *eval)
{
    uint32_t limit = eval->options->limit;
    return limit && limit < eval->rows.n ? limit : eval->rows.n;
}

#endif
