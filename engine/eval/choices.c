/* Tasks that compare likelihoods of continuations: LAMBADA's last word and questions with choices.
 * The split into tokens is that of EleutherAI's evaluation harness: the whole text is tokenised,
 * and what comes after as many tokens as the context alone has is the continuation. So the figures
 * compare with its lambada_openai, piqa, arc_* and boolq. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <math.h>
#include <string.h>

static int encode(const struct eval *eval, const char *text, size_t len, struct token_list *list,
                  struct error *err)
{
    return tokenizer_encode(engine_tokenizer(eval->system), text, len, TOKENIZER_ADD_SPECIAL, list,
                            err);
}

/* The tokens of `continuation` as they are behind `context`, whose n_context tokens are known. */
static int encode_behind(const struct eval *eval, const struct buf *context, size_t n_context,
                         const char *continuation, struct token_list *ret_list, struct error *err)
{
    _cleanup_buf_ struct buf whole = {0};
    struct token_list tokens = {0};
    buf_append(&whole, context->data, context->len);
    buf_append_str(&whole, " ");
    buf_append_str(&whole, continuation);
    if (whole.failed)
        return error_memory(err, "continuation", whole.len);
    int rc = encode(eval, whole.data, whole.len, &tokens, err);
    if (rc == 0 && tokens.n > n_context)
        rc = token_list_append(ret_list, tokens.ids + n_context, tokens.n - n_context, err);
    token_list_free(&tokens);
    return rc;
}

static int open_item(const struct eval *eval, const struct eval_row *row, const struct buf *context,
                     uint32_t n, struct scored *item, struct error *err)
{
    item->row = row;
    item->list = mem_calloc(n, sizeof(*item->list));
    if (!item->list || context->failed)
        return error_memory(err, "choices", n * sizeof(*item->list));
    item->n = n;
    return encode(eval, context->data, context->len, &item->prompt, err);
}

static int add_continuation(const struct eval *eval, const struct buf *context,
                            const char *continuation, struct scored *item, uint32_t c,
                            struct error *err)
{
    int rc = encode_behind(eval, context, item->prompt.n, continuation, &item->list[c].tokens, err);
    if (rc == 0 && (!item->prompt.n || !item->list[c].tokens.n))
        rc = eval_row_error(&eval->rows, item->row, "expected text in context and continuation",
                            err);
    return rc;
}

typedef int read_row_fn(const struct eval *eval, const struct eval_row *row, struct scored *item,
                        struct error *err);

/* Reads the rows and scores them; items are the caller's to free also on failure. */
static int score_rows(struct eval *eval, read_row_fn *read_row, struct scored **ret_items,
                      size_t *ret_n, struct error *err)
{
    size_t n = eval_most_rows(eval);
    struct scored *items = mem_calloc(n, sizeof(*items));
    int rc = items ? 0 : error_memory(err, "rows", n * sizeof(*items));
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = read_row(eval, &eval->rows.list[i], &items[i], err);
    *ret_items = items;
    *ret_n = n;
    if (rc == 0)
        rc = likelihood_run(eval, eval->system, eval->decode, items, n,
                            eval->options->decoder_first, 0, 1, err);
    return rc ? rc : report_open_rows(eval->report, n, err);
}

static int read_lambada(const struct eval *eval, const struct eval_row *row, struct scored *item,
                        struct error *err)
{
    _cleanup_json_ cJSON *json = NULL;
    _cleanup_buf_ struct buf context = {0};
    const char *text, *word;
    int rc = eval_row_parse(&eval->rows, row, &json, err);
    if (rc == 0)
        rc = eval_row_string(&eval->rows, row, json, "context", &text, err);
    if (rc == 0)
        rc = eval_row_string(&eval->rows, row, json, "continuation", &word, err);
    if (rc)
        return rc;
    buf_append_str(&context, text);
    rc = open_item(eval, row, &context, 1, item, err);
    return rc ? rc : add_continuation(eval, &context, word, item, 0, err);
}

int eval_lambada(struct eval *eval, struct error *err)
{
    struct eval_report *report = eval->report;
    struct scored *items = NULL;
    size_t n = 0;
    int rc = score_rows(eval, read_lambada, &items, &n, err);
    if (rc == 0) {
        report_add_metric(report, "acc", false);
        report_add_metric(report, "nll", false);
        report_add_exponential(report, "perplexity", 1);
    }
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct continuation *c = &items[i].list[0];
        report->lines[i] = items[i].row->line;
        report->weights[i] = (double)c->tokens.n;
        report->values[i * EVAL_MAX_METRICS] = c->n_likeliest == c->tokens.n;
        report->values[i * EVAL_MAX_METRICS + 1] = -c->logprob;
    }
    scored_free(items, n);
    return rc;
}

static size_t n_characters(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static bool is_choice_list(const cJSON *choices)
{
    const cJSON *choice;
    int n = cJSON_GetArraySize(choices);
    if (!cJSON_IsArray(choices) || n < 2 || n > ENGINE_MAX_CHOICES)
        return false;
    cJSON_ArrayForEach(choice, choices)
    {
        if (!cJSON_IsString(choice) || !*choice->valuestring)
            return false;
    }
    return true;
}

/* "Question: ...\nAnswer:" and then " " with a choice. */
static void put_context(const char *query, struct buf *context)
{
    size_t len = strlen(query);
    while (len && strchr(" \n\r\t", query[len - 1]))
        len--;
    buf_append(context, query, len);
    buf_append_str(context, "\nAnswer:");
}

static int read_choices(const struct eval *eval, const struct eval_row *row, struct scored *item,
                        struct error *err)
{
    _cleanup_json_ cJSON *json = NULL;
    _cleanup_buf_ struct buf context = {0};
    const char *query;
    int rc = eval_row_parse(&eval->rows, row, &json, err);
    if (rc == 0)
        rc = eval_row_string(&eval->rows, row, json, "query", &query, err);
    if (rc)
        return rc;
    const cJSON *choices = cJSON_GetObjectItemCaseSensitive(json, "choices");
    const cJSON *gold = cJSON_GetObjectItemCaseSensitive(json, "gold");
    if (!is_choice_list(choices))
        return eval_row_error(&eval->rows, row, "expected `choices`, a list of 2 to 128 texts",
                              err);
    uint32_t n = (uint32_t)cJSON_GetArraySize(choices);
    if (!cJSON_IsNumber(gold) || gold->valuedouble < 0 || gold->valuedouble >= n ||
        gold->valuedouble != floor(gold->valuedouble))
        return eval_row_error(&eval->rows, row, "expected `gold`, the number of a choice", err);

    put_context(query, &context);
    rc = open_item(eval, row, &context, n, item, err);
    item->gold = (uint32_t)gold->valuedouble;
    for (uint32_t c = 0; c < n && rc == 0; c++) {
        const char *text = cJSON_GetArrayItem(choices, (int)c)->valuestring;
        item->list[c].n_characters = n_characters(text);
        rc = add_continuation(eval, &context, text, item, c, err);
    }
    return rc;
}

/* Ties: the first one, as numpy's argmax. */
static bool picks_gold(const struct scored *item, bool by_length)
{
    uint32_t best = 0;
    double best_score = -INFINITY;
    for (uint32_t c = 0; c < item->n; c++) {
        const struct continuation *x = &item->list[c];
        double score = x->logprob / (by_length ? (double)x->n_characters : 1);
        if (score > best_score) {
            best = c;
            best_score = score;
        }
    }
    return best == item->gold;
}

int eval_choices(struct eval *eval, struct error *err)
{
    struct eval_report *report = eval->report;
    struct scored *items = NULL;
    size_t n = 0;
    int rc = score_rows(eval, read_choices, &items, &n, err);
    if (rc == 0) {
        report_add_metric(report, "acc_norm", false);
        report_add_metric(report, "acc", false);
    }
    for (size_t i = 0; i < n && rc == 0; i++) {
        report->lines[i] = items[i].row->line;
        report->weights[i] = 1;
        report->values[i * EVAL_MAX_METRICS] = picks_gold(&items[i], true);
        report->values[i * EVAL_MAX_METRICS + 1] = picks_gold(&items[i], false);
    }
    scored_free(items, n);
    return rc;
}
