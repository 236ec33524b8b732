/* Can one model decode on the KV that another wrote? See model_file_check_pair in model_file.h.
 * Tokens must mean the same to both; how text is cut and when an answer ends is the full model's
 * business, since the engine has one tokenizer, so special tokens and the template may differ. */
#include "engine/base/mem.h"
#include "engine/model/model_file_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Frequencies that came once from config.json and once from a converter's float divisors. */
#define ROPE_TOLERANCE 1e-5

static int check_params(const struct model_params *a, const struct model_params *b,
                        struct error *err)
{
    const struct {
        const char *name;
        uint32_t full, twin;
    } numbers[] = {
        {"layers", a->n_layers, b->n_layers},
        {"heads", a->n_heads, b->n_heads},
        {"KV heads", a->n_kv_heads, b->n_kv_heads},
        {"head dimension", a->head_dim, b->head_dim},
        {"RoPE dimension", a->rope_dim, b->rope_dim},
        {"vocabulary size", a->vocab_size, b->vocab_size},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (numbers[i].full != numbers[i].twin)
            return error_set(err, ERROR_INVALID, "%s: %" PRIu32 " expected, found %" PRIu32,
                             numbers[i].name, numbers[i].full, numbers[i].twin);
    for (uint32_t i = 0; i < a->rope_dim / 2; i++) {
        double full = (double)a->rope_inv_freq[i], twin = (double)b->rope_inv_freq[i];
        if (fabs(full - twin) > ROPE_TOLERANCE * fabs(full))
            return error_set(err, ERROR_INVALID,
                             "RoPE frequency %" PRIu32 ": %.9g expected, found %.9g", i, full,
                             twin);
    }
    return 0;
}

static bool equal(struct vocab_string x, struct vocab_string y)
{
    return x.len == y.len && memcmp(x.data, y.data, x.len) == 0;
}

static int shown(struct vocab_string s)
{
    return (int)(s.len < 40 ? s.len : 40);
}

/* Text is made of these; the others only mark it. */
static bool is_text(const struct vocab *v, uint32_t id)
{
    return v->kind[id] == TOKEN_NORMAL || v->kind[id] == TOKEN_BYTE;
}

/* The first special token to differ is counted as a warning, any other one is an error. */
static int check_tokens(const struct vocab *a, const struct vocab *b, struct error *warning,
                        struct error *err)
{
    for (uint32_t i = 0; i < a->n_tokens; i++) {
        struct vocab_string x = a->text[i], y = b->text[i];
        bool text = is_text(a, i) || is_text(b, i);
        if (text && !equal(x, y))
            return error_set(err, ERROR_INVALID,
                             "token %" PRIu32 ": \"%.*s\" expected, found \"%.*s\"", i, shown(x),
                             x.data, shown(y), y.data);
        if (!warning->code && (!equal(x, y) || is_text(a, i) != is_text(b, i)))
            error_fill(warning, ERROR_INVALID,
                       "special token %" PRIu32 " is \"%.*s\", in the full model \"%.*s\"", i,
                       shown(y), y.data, shown(x), x.data);
    }
    return 0;
}

static int check_merges(const struct vocab *a, const struct vocab *b, struct error *err)
{
    if (a->n_merges != b->n_merges)
        return error_set(err, ERROR_INVALID,
                         "tokenizer: %" PRIu32 " merges expected, found %" PRIu32, a->n_merges,
                         b->n_merges);
    for (uint32_t i = 0; i < a->n_merges; i++)
        if (!equal(a->merges[i], b->merges[i]))
            return error_set(err, ERROR_INVALID,
                             "tokenizer: merge %" PRIu32 ": \"%.*s\" expected, found \"%.*s\"", i,
                             shown(a->merges[i]), a->merges[i].data, shown(b->merges[i]),
                             b->merges[i].data);
    return 0;
}

struct scored {
    float full, twin;
    uint32_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->full != y->full)
        return x->full > y->full ? -1 : 1;
    return (x->twin < y->twin) - (x->twin > y->twin);
}

/* Only the order of scores counts: a GGUF file has SentencePiece's own numbers where a folder has
 * the ranks of merges. */
static int check_scores(const struct vocab *a, const struct vocab *b, struct error *err)
{
    _cleanup_mem_ struct scored *tokens = mem_array(a->n_tokens, sizeof(*tokens));
    uint32_t n = 0;
    if (!tokens)
        return error_memory(err, "token scores", a->n_tokens * sizeof(*tokens));
    for (uint32_t i = 0; i < a->n_tokens; i++)
        if (a->kind[i] == TOKEN_NORMAL && b->kind[i] == TOKEN_NORMAL)
            tokens[n++] = (struct scored){a->score[i], b->score[i], i};
    qsort(tokens, n, sizeof(*tokens), by_score);
    for (uint32_t i = 1; i < n; i++)
        if (tokens[i].twin > tokens[i - 1].twin)
            return error_set(err, ERROR_INVALID,
                             "tokenizer: token %" PRIu32
                             " expected to be merged before token %" PRIu32
                             ", found the other way round",
                             tokens[i - 1].id, tokens[i].id);
    return 0;
}

static int check_tokenizer(const struct vocab *a, const struct vocab *b, struct error *warning,
                           struct error *err)
{
    if (a->model != b->model || strcmp(a->pre, b->pre) != 0)
        return error_set(err, ERROR_INVALID, "tokenizer: %s %s expected, found %s %s",
                         a->model == VOCAB_BPE ? "bpe" : "spm", a->pre,
                         b->model == VOCAB_BPE ? "bpe" : "spm", b->pre);
    int rc = check_tokens(a, b, warning, err);
    if (rc == 0)
        rc = a->model == VOCAB_BPE ? check_merges(a, b, err) : check_scores(a, b, err);
    return rc;
}

static void compare_specials(const struct vocab *a, const struct vocab *b, struct error *warning)
{
    const struct {
        const char *name;
        int32_t full, twin;
    } ids[] = {
        {"token bos", a->bos, b->bos},       {"token eos", a->eos, b->eos},
        {"token eot", a->eot, b->eot},       {"token unk", a->unk, b->unk},
        {"token pad", a->pad, b->pad},       {"add_bos", a->add_bos, b->add_bos},
        {"add_eos", a->add_eos, b->add_eos},
    };
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]) && !warning->code; i++)
        if (ids[i].full != ids[i].twin)
            error_fill(warning, ERROR_INVALID, "%s is %" PRId32 ", in the full model %" PRId32,
                       ids[i].name, ids[i].twin, ids[i].full);
    const char *x = a->chat_template ? a->chat_template : "";
    const char *y = b->chat_template ? b->chat_template : "";
    if (!warning->code && strcmp(x, y) != 0)
        error_fill(warning, ERROR_INVALID, "the chat template is not the full model's");
}

int model_file_check_pair(const struct model_file *full, const struct model_file *twin,
                          struct error *ret_warning, struct error *err)
{
    struct error warning = {0};
    int rc = check_params(&full->params, &twin->params, err);
    if (rc == 0)
        rc = check_tokenizer(&full->vocab, &twin->vocab, &warning, err);
    if (rc)
        return error_prefix(err, "%s does not fit %s", twin->path, full->path);
    compare_specials(&full->vocab, &twin->vocab, &warning);
    *ret_warning = warning;
    return 0;
}
