/* Tasks that let the system write: greedy answers against a reference, and greedy answers as the
 * full model sees them. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <string.h>

struct answer {
    const struct eval_row *row;
    char *prompt_text;
    char *reference; /* generate only */
    struct token_list prompt, tokens;
    struct buf text;
    bool ends; /* by itself */
};

/* One pass of answers through one engine. */
struct writing {
    struct eval *eval;
    struct answer *answers;
    size_t n;
    enum decode_mode decode;
    bool is_chat;
    struct chat_message message; /* of the request at hand */
};

static void free_answers(struct answer *answers, size_t n)
{
    for (size_t i = 0; answers && i < n; i++) {
        mem_free(answers[i].prompt_text);
        mem_free(answers[i].reference);
        token_list_free(&answers[i].prompt);
        token_list_free(&answers[i].tokens);
        buf_free(&answers[i].text);
    }
    mem_free(answers);
}

static int make(void *user, size_t i, struct engine_request *request, struct error *err)
{
    struct writing *w = user;
    const char *text = w->answers[i].prompt_text;
    w->message = (struct chat_message){"user", text, strlen(text)};
    if (w->is_chat) {
        request->messages = &w->message;
        request->n_messages = 1;
    } else {
        request->text = text;
        request->text_len = w->message.content_len;
    }
    request->max_tokens = w->eval->report->score_tokens;
    request->decode = w->decode;
    return 0;
}

static int take(void *user, size_t i, const struct engine_output *output, struct error *err)
{
    struct writing *w = user;
    struct answer *a = &w->answers[i];
    int rc = 0;
    if (output->prompt_ids)
        rc = token_list_append(&a->prompt, output->prompt_ids, output->usage.prompt_tokens, err);
    for (size_t t = 0; t < output->n_tokens && rc == 0; t++) {
        const struct engine_token *token = &output->tokens[t];
        if (token->token >= 0)
            rc = token_list_append(&a->tokens, &token->token, 1, err);
        if (token->text_len)
            buf_append(&a->text, output->text + token->text_start, token->text_len);
        a->ends |= token->finish == FINISH_STOP;
    }
    return rc == 0 && a->text.failed ? error_memory(err, "answer", a->text.len) : rc;
}

static int write_answers(struct eval *eval, struct engine *engine, enum decode_mode decode,
                         struct answer *answers, size_t n, double share_begin, double share_width,
                         struct error *err)
{
    struct engine_info info;
    engine_get_info(engine, &info);
    struct writing w = {
        .eval = eval,
        .answers = answers,
        .n = n,
        .decode = decode,
        .is_chat = info.chat_template && !eval->options->raw_prompt,
    };
    struct flight flight = {
        .engine = engine,
        .n_items = n,
        .user = &w,
        .make = make,
        .take = take,
        .eval = eval,
        .share_begin = share_begin,
        .share_width = share_width,
    };
    return flight_run(&flight, err);
}

/* `prompt`, or the first of `turns`; with_reference: also `completion`. */
static int read_row(const struct eval *eval, const struct eval_row *row, bool with_reference,
                    struct answer *answer, struct error *err)
{
    _cleanup_json_ cJSON *json = NULL;
    const char *prompt, *completion = "";
    int rc = eval_row_parse(&eval->rows, row, &json, err);
    if (rc)
        return rc;
    const cJSON *turn = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(json, "turns"), 0);
    if (cJSON_IsString(turn) && *turn->valuestring)
        prompt = turn->valuestring;
    else
        rc = eval_row_string(&eval->rows, row, json, "prompt", &prompt, err);
    if (rc == 0 && with_reference)
        rc = eval_row_string(&eval->rows, row, json, "completion", &completion, err);
    if (rc)
        return rc;
    const char *end = strstr(completion, "<|endoftext|>");
    answer->row = row;
    answer->prompt_text = mem_strdup(prompt);
    answer->reference =
        mem_strndup(completion, end ? (size_t)(end - completion) : strlen(completion));
    if (!answer->prompt_text || !answer->reference)
        return error_memory(err, "row", row->len);
    return 0;
}

static int read_rows(const struct eval *eval, bool with_reference, size_t n,
                     struct answer **ret_answers, struct error *err)
{
    struct answer *answers = mem_calloc(n, sizeof(*answers));
    int rc = answers ? 0 : error_memory(err, "answers", n * sizeof(*answers));
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = read_row(eval, &eval->rows.list[i], with_reference, &answers[i], err);
    *ret_answers = answers;
    return rc;
}

static int count_tokens(struct eval *eval, const struct answer *answers, size_t n,
                        struct error *err)
{
    struct eval_report *report = eval->report;
    int rc = report_open_rows(report, n, err);
    for (size_t i = 0; i < n && rc == 0; i++) {
        report->lines[i] = answers[i].row->line;
        report->weights[i] = (double)answers[i].tokens.n;
        report->n_tokens += answers[i].tokens.n;
    }
    return rc;
}

static const char *text_of(const struct answer *answer)
{
    return answer->text.data ? answer->text.data : "";
}

int eval_generate(struct eval *eval, struct error *err)
{
    struct eval_report *report = eval->report;
    struct answer *answers = NULL;
    size_t n = eval_most_rows(eval);
    int rc = read_rows(eval, true, n, &answers, err);
    if (rc == 0)
        rc = write_answers(eval, eval->system, eval->decode, answers, n, 0, 1, err);
    if (rc == 0)
        rc = count_tokens(eval, answers, n, err);
    if (rc == 0) {
        report_add_metric(report, "rouge_l", false);
        report_add_metric(report, "exact_match", false);
        report_add_metric(report, "f1", false);
    }
    for (size_t i = 0; i < n && rc == 0; i++) {
        double *values = report->values + i * EVAL_MAX_METRICS;
        values[0] = text_rouge_l(text_of(&answers[i]), answers[i].reference);
        values[1] = text_exact_match(text_of(&answers[i]), answers[i].reference);
        values[2] = text_f1(text_of(&answers[i]), answers[i].reference);
    }
    free_answers(answers, n);
    return rc;
}

/* The answers as continuations of their prompts. */
static int make_scored(const struct answer *answers, size_t n, struct scored **ret_items,
                       struct error *err)
{
    struct scored *items = mem_calloc(n, sizeof(*items));
    int rc = items ? 0 : error_memory(err, "answers", n * sizeof(*items));
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct answer *a = &answers[i];
        items[i].row = a->row;
        items[i].list = mem_calloc(1, sizeof(*items[i].list));
        if (!items[i].list)
            rc = error_memory(err, "answer", sizeof(*items[i].list));
        items[i].n = 1;
        if (rc == 0)
            rc = token_list_append(&items[i].prompt, a->prompt.ids, a->prompt.n, err);
        if (rc == 0)
            rc = token_list_append(&items[i].list[0].tokens, a->tokens.ids, a->tokens.n, err);
    }
    *ret_items = items;
    return rc;
}

/* The answers' likelihood under a decoder. */
static int score_answers(struct eval *eval, struct engine *engine, enum decode_mode decode,
                         const struct answer *answers, size_t n, double share_begin,
                         struct scored **ret_items, struct error *err)
{
    int rc = make_scored(answers, n, ret_items, err);
    return rc ? rc
              : likelihood_run(eval, engine, decode, *ret_items, n, false, share_begin, 0.1, err);
}

static void fill_answers(struct eval_report *report, const struct answer *answers,
                         const struct scored *by_full, const struct scored *own_by_system)
{
    report_add_metric(report, "nll", true);
    report_add_metric(report, "agree", true);
    report_add_metric(report, "own_agree", false);
    report_add_metric(report, "distinct_3", false);
    report_add_metric(report, "ends", false);
    report_add_metric(report, "length", false);
    for (size_t i = 0; i < report->n_rows; i++) {
        double *values = report->values + i * EVAL_MAX_METRICS;
        const struct token_list *tokens = &answers[i].tokens;
        const struct continuation *full = &by_full[i].list[0];
        const struct continuation *own = &own_by_system[i].list[0];
        values[0] = -full->logprob / (double)tokens->n;
        values[1] = (double)full->n_likeliest / (double)tokens->n;
        values[2] = (double)own->n_likeliest / (double)own->tokens.n;
        values[3] = text_distinct(tokens->ids, tokens->n, 3);
        values[4] = answers[i].ends;
        values[5] = (double)tokens->n;
    }
}

/* The system's answers under the full model, and the full model's own answers under the system. */
int eval_answers(struct eval *eval, struct error *err)
{
    struct answer *answers = NULL, *own = NULL;
    struct scored *by_full = NULL, *own_by_system = NULL;
    size_t n = eval_most_rows(eval);
    int rc = read_rows(eval, false, n, &answers, err);
    if (rc == 0)
        rc = write_answers(eval, eval->system, eval->decode, answers, n, 0, 0.4, err);
    if (rc == 0)
        rc = read_rows(eval, false, n, &own, err);
    if (rc == 0)
        rc = write_answers(eval, eval->full, DECODE_FULL, own, n, 0.4, 0.4, err);
    if (rc == 0)
        rc = score_answers(eval, eval->full, DECODE_FULL, answers, n, 0.8, &by_full, err);
    if (rc == 0)
        rc = score_answers(eval, eval->system, eval->decode, own, n, 0.9, &own_by_system, err);
    eval->report->n_tokens = 0; /* the system's answers only */
    if (rc == 0)
        rc = count_tokens(eval, answers, n, err);
    if (rc == 0)
        fill_answers(eval->report, answers, by_full, own_by_system);
    scored_free(by_full, n);
    scored_free(own_by_system, n);
    free_answers(answers, n);
    free_answers(own, n);
    return rc;
}
