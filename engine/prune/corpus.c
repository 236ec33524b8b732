/* Files of text to documents of tokens. See corpus.h. */
#include "engine/prune/corpus.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/prune/jsonl.h"

#include <stdlib.h>
#include <string.h>

/* Estimates for choosing documents before any is tokenised. */
#define BYTES_PER_TOKEN 4
/* A document of so many bytes is long. */
#define LONG_BYTES ((size_t)CORPUS_LONG_TOKENS * 5)

/* A row of the file: which documents it is a copy of, and its place in the shuffled order. */
struct row {
    uint64_t key, order;
    size_t number;
    size_t bytes;
};

struct row_list {
    struct row *rows;
    size_t n, cap;
};

static int encode_text(const struct corpus_text *how, const struct buf *text,
                       struct token_list *ids, struct error *err)
{
    size_t n = text->len < 16 * LONG_BYTES ? text->len : 16 * LONG_BYTES;
    return n ? tokenizer_encode(how->tokenizer, text->data, n, 0, ids, err) : 0;
}

static int encode_messages(const struct corpus_text *how, const struct chat_message *messages,
                           size_t n, bool opens_answer, struct token_list *ids, struct error *err)
{
    struct chat_prompt prompt = {0};
    int rc = chat_template_render(how->chat_template, messages, n, opens_answer, &prompt, err);
    if (rc == 0)
        rc = chat_prompt_encode(&prompt, how->tokenizer, ids, err);
    chat_prompt_free(&prompt);
    return rc;
}

/* What stands before the last message, and its opening, is the prompt. */
static int encode_chat(const struct corpus_text *how, const struct document *d,
                       struct token_list *ids, size_t *ret_prompt, struct error *err)
{
    struct token_list prompt = {0};
    if (!how->chat_template)
        return error_set(err, ERROR_UNSUPPORTED,
                         "calibration: rows of `messages`, but the model has no chat template that "
                         "is known");
    int rc = encode_messages(how, d->messages, d->n_messages, false, ids, err);
    if (rc == 0)
        rc = encode_messages(how, d->messages, d->n_messages - 1, true, &prompt, err);
    *ret_prompt = prompt.n;
    token_list_free(&prompt);
    return rc;
}

static uint64_t longest_line(const struct buf *text)
{
    size_t best = 0;
    uint64_t hash = HASH_START;
    for (size_t at = 0; at < text->len;) {
        const char *newline = memchr(text->data + at, '\n', text->len - at);
        size_t end = newline ? (size_t)(newline - text->data) : text->len;
        if (end - at > best) {
            best = end - at;
            hash = hash_bytes(HASH_START, text->data + at, best);
        }
        at = end + 1;
    }
    return hash;
}

static int add_row(struct row_list *list, const struct buf *text, size_t number, struct error *err)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 1024;
        struct row *rows = mem_realloc(list->rows, cap, sizeof(*rows));
        if (!rows)
            return error_memory(err, "calibration rows", cap * sizeof(*rows));
        list->rows = rows;
        list->cap = cap;
    }
    list->rows[list->n++] = (struct row){
        .key = longest_line(text),
        .order = hash_bytes(HASH_START, text->data, text->len),
        .number = number,
        .bytes = text->len,
    };
    return 0;
}

static int by_key(const void *a, const void *b)
{
    const struct row *x = a;
    const struct row *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

/* Long documents first, in shuffled order. */
static int by_order(const void *a, const void *b)
{
    const struct row *x = a;
    const struct row *y = b;
    bool x_long = x->bytes >= LONG_BYTES;
    bool y_long = y->bytes >= LONG_BYTES;
    if (x_long != y_long)
        return x_long ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

static int by_number(const void *a, const void *b)
{
    const struct row *x = a;
    const struct row *y = b;
    return (x->number > y->number) - (x->number < y->number);
}

static int list_rows(const char *path, struct row_list *list, struct error *err)
{
    struct line_reader *reader;
    struct document document = {0};
    const char *line;
    size_t len;
    int rc = line_reader_open(path, &reader, err);
    if (rc)
        return rc;
    for (size_t number = 0;; number++) {
        rc = line_reader_next(reader, &line, &len, err);
        if (rc || !line)
            break;
        if (len)
            rc = line_reader_document(reader, &document, err);
        if (rc == 0 && len)
            rc = add_row(list, &document.text, number, err);
        if (rc)
            break;
    }
    document_free(&document);
    line_reader_close(reader);
    return rc;
}

/* Keeps one row a document, and of these so many that n_tokens tokens are likely; in file order. */
static void choose_rows(struct row_list *list, size_t n_tokens)
{
    size_t n = 0;
    qsort(list->rows, list->n, sizeof(*list->rows), by_key);
    for (size_t i = 0; i < list->n; i++)
        if (i == 0 || list->rows[i].key != list->rows[i - 1].key)
            list->rows[n++] = list->rows[i];
    qsort(list->rows, n, sizeof(*list->rows), by_order);
    size_t tokens = 0;
    list->n = 0;
    for (size_t i = 0; i < n && tokens < n_tokens; i++) {
        size_t likely = list->rows[i].bytes / (BYTES_PER_TOKEN + 2);
        tokens += likely < CORPUS_LONG_TOKENS ? likely : CORPUS_LONG_TOKENS;
        list->n = i + 1;
    }
    qsort(list->rows, list->n, sizeof(*list->rows), by_number);
}

static int give_row(const struct corpus *corpus, const struct document *d, bool *ret_enough,
                    struct error *err)
{
    struct token_list ids = {0};
    size_t n_prompt = 0;
    int rc = d->n_messages ? encode_chat(&corpus->how, d, &ids, &n_prompt, err)
                           : encode_text(&corpus->how, &d->text, &ids, err);
    if (rc == 0)
        rc = corpus->each(corpus->user, &ids, n_prompt, ret_enough, err);
    token_list_free(&ids);
    return rc;
}

static int read_rows(const struct corpus *corpus, struct error *err)
{
    struct row_list list = {0};
    struct line_reader *reader = NULL;
    struct document document = {0};
    const char *line;
    size_t len;
    size_t at = 0;
    bool enough = false;
    int rc = list_rows(corpus->path, &list, err);
    if (rc == 0 && list.n)
        choose_rows(&list, corpus->n_tokens);
    if (rc == 0)
        rc = line_reader_open(corpus->path, &reader, err);
    for (size_t number = 0; rc == 0 && at < list.n && !enough; number++) {
        rc = line_reader_next(reader, &line, &len, err);
        if (rc || !line)
            break;
        if (list.rows[at].number != number)
            continue;
        at++;
        rc = line_reader_document(reader, &document, err);
        if (rc == 0)
            rc = give_row(corpus, &document, &enough, err);
    }
    document_free(&document);
    line_reader_close(reader);
    mem_free(list.rows);
    return rc;
}

static int read_plain(const struct corpus *corpus, struct error *err)
{
    struct line_reader *reader;
    _cleanup_buf_ struct buf text = {0};
    struct token_list ids = {0};
    const char *line;
    size_t len;
    bool enough;
    size_t most =
        corpus->n_tokens < SIZE_MAX / 8 ? 2 * BYTES_PER_TOKEN * corpus->n_tokens : SIZE_MAX;
    int rc = line_reader_open(corpus->path, &reader, err);
    if (rc)
        return rc;
    while (rc == 0 && text.len < most) {
        rc = line_reader_next(reader, &line, &len, err);
        if (rc || !line)
            break;
        buf_append(&text, line, len);
        buf_append_str(&text, "\n");
    }
    if (rc == 0 && text.failed)
        rc = error_memory(err, "calibration text", text.len);
    if (rc == 0 && text.len)
        rc = tokenizer_encode(corpus->how.tokenizer, text.data, text.len, 0, &ids, err);
    if (rc == 0)
        rc = corpus->each(corpus->user, &ids, 0, &enough, err);
    token_list_free(&ids);
    line_reader_close(reader);
    return rc;
}

int corpus_read(const struct corpus *corpus, struct error *err)
{
    return path_is_jsonl(corpus->path) ? read_rows(corpus, err) : read_plain(corpus, err);
}

int corpus_find_template(const char *name, const struct vocab *vocab,
                         const struct chat_template **ret_template, struct error *err)
{
    struct error unknown;
    if (name)
        return chat_template_find(name, NULL, ret_template, err);
    if (chat_template_find(NULL, vocab->chat_template, ret_template, &unknown))
        *ret_template = NULL;
    return 0;
}
