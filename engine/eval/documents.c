/* Documents for the nll task: of a JSONL file the rows that are long enough, one for each article;
 * of a text its pieces. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <stdlib.h>
#include <string.h>

struct reading {
    struct eval *eval;
    struct eval_documents *documents;
    uint64_t *articles; /* [documents->n] */
};

/* Rows of one article under many templates count once. Its longest sentence tells. */
static uint64_t article_of(const char *text)
{
    const char *best = text;
    size_t best_len = 0;
    while (*text) {
        text += strspn(text, " ");
        size_t len = strcspn(text, ".!?\n");
        if (len > best_len) {
            best = text;
            best_len = len;
        }
        text += len + (text[len] != '\0');
    }
    return eval_hash(best, best_len);
}

static bool is_known_article(const struct reading *r, uint64_t article)
{
    for (size_t i = 0; i < r->documents->n; i++)
        if (r->articles[i] == article)
            return true;
    return false;
}

/* `text`, or `prompt` and `completion`, without the token text that some files end rows with. */
static int row_text(const struct eval_rows *rows, const struct eval_row *row, struct buf *text,
                    struct error *err)
{
    static const char END[] = "<|endoftext|>";
    _cleanup_json_ cJSON *json = NULL;
    const char *first;
    int rc = eval_row_parse(rows, row, &json, err);
    if (rc)
        return rc;
    bool has_text = cJSON_GetObjectItemCaseSensitive(json, "text") != NULL;
    rc = eval_row_string(rows, row, json, has_text ? "text" : "prompt", &first, err);
    if (rc)
        return rc;
    buf_append_str(text, first);
    const cJSON *completion = cJSON_GetObjectItemCaseSensitive(json, "completion");
    if (!has_text && cJSON_IsString(completion)) {
        buf_append_str(text, "\n");
        buf_append_str(text, completion->valuestring);
    }
    if (text->failed)
        return error_memory(err, "row", text->len);
    size_t n_end = sizeof(END) - 1;
    if (text->len >= n_end && memcmp(text->data + text->len - n_end, END, n_end) == 0)
        text->data[text->len -= n_end] = '\0';
    return 0;
}

static int open_list(struct eval_documents *documents, size_t most, struct error *err)
{
    documents->list = mem_calloc(most + 1, sizeof(*documents->list));
    return documents->list ? 0 : error_memory(err, "documents", most * sizeof(*documents->list));
}

static int add_document(struct eval_documents *documents, uint64_t hash, size_t line,
                        const int32_t *tokens, struct error *err)
{
    size_t bytes = documents->n_tokens * sizeof(int32_t);
    int32_t *copy = mem_alloc(bytes);
    if (!copy)
        return error_memory(err, "document", bytes);
    memcpy(copy, tokens, bytes);
    documents->list[documents->n++] = (struct eval_document){hash, line, copy};
    return 0;
}

/* Adds the row's document if it is long enough and of a new article. */
static int take_row(struct reading *r, const struct eval_row *row, struct token_list *tokens,
                    struct error *err)
{
    _cleanup_buf_ struct buf text = {0};
    struct eval *eval = r->eval;
    int rc = row_text(&eval->rows, row, &text, err);
    if (rc)
        return rc;
    tokens->n = 0;
    rc = tokenizer_encode(engine_tokenizer(eval->system), text.data, text.len,
                          TOKENIZER_ADD_SPECIAL, tokens, err);
    if (rc)
        return rc;
    if (tokens->n < r->documents->n_tokens) {
        eval->report->n_too_short++;
        return 0;
    }
    uint64_t article = article_of(text.data);
    if (is_known_article(r, article)) {
        eval->report->n_of_same_article++;
        return 0;
    }
    r->articles[r->documents->n] = article;
    return add_document(r->documents, row->hash, row->line, tokens->ids, err);
}

static int take_rows(struct eval *eval, struct eval_documents *documents, struct error *err)
{
    struct token_list tokens = {0};
    size_t most = eval_most_rows(eval);
    struct reading r = {eval, documents, mem_calloc(most, sizeof(*r.articles))};
    int rc = open_list(documents, most, err);
    if (rc == 0 && !r.articles)
        rc = error_memory(err, "documents", most * sizeof(*r.articles));
    for (size_t i = 0; i < eval->rows.n && documents->n < most && rc == 0; i++)
        rc = take_row(&r, &eval->rows.list[i], &tokens, err);
    token_list_free(&tokens);
    mem_free(r.articles);
    return rc;
}

static int by_hash(const void *a, const void *b)
{
    const struct eval_document *x = a, *y = b;
    return x->hash < y->hash ? -1 : x->hash > y->hash;
}

/* A text in pieces, one after another. */
static int take_text(struct eval *eval, struct eval_documents *documents, struct error *err)
{
    const struct buf *data = &eval->rows.data;
    struct token_list tokens = {0};
    uint32_t limit = eval->options->limit;
    int rc = tokenizer_encode(engine_tokenizer(eval->system), data->data, data->len,
                              TOKENIZER_ADD_SPECIAL, &tokens, err);
    size_t n_pieces = rc ? 0 : tokens.n / documents->n_tokens;
    if (rc == 0)
        rc = open_list(documents, n_pieces, err);
    for (size_t i = 0; i < n_pieces && rc == 0; i++) {
        const int32_t *piece = tokens.ids + i * documents->n_tokens;
        uint64_t hash = eval_hash(piece, documents->n_tokens * sizeof(*piece));
        rc = add_document(documents, hash, i + 1, piece, err);
    }
    token_list_free(&tokens);
    if (rc)
        return rc;
    qsort(documents->list, documents->n, sizeof(*documents->list), by_hash);
    while (limit && documents->n > limit)
        mem_free(documents->list[--documents->n].tokens);
    return 0;
}

int eval_documents_read(struct eval *eval, size_t n_tokens, struct eval_documents *ret_documents,
                        struct error *err)
{
    struct eval_documents documents = {.n_tokens = n_tokens};
    int rc =
        eval->rows.is_jsonl ? take_rows(eval, &documents, err) : take_text(eval, &documents, err);
    if (rc == 0 && !documents.n)
        rc = error_set(err, ERROR_INVALID,
                       "data %s: no document has %zu tokens (prompt-tokens and score-tokens)",
                       eval->rows.path, n_tokens);
    if (rc) {
        eval_documents_free(&documents);
        return rc;
    }
    *ret_documents = documents;
    return 0;
}

void eval_documents_free(struct eval_documents *documents)
{
    for (size_t i = 0; i < documents->n; i++)
        mem_free(documents->list[i].tokens);
    mem_free(documents->list);
    *documents = (struct eval_documents){0};
}
