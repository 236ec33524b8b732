/* From a calibration file to samples. See samples.h. */
#include "engine/prune/samples.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/kernels/kernels.h"
#include "engine/prune/jsonl.h"

#include <stdlib.h>
#include <string.h>

/* Shorter ones have no prompt of a page and an answer worth fitting to. */
#define MIN_SAMPLE_TOKENS 64
#define MIN_ANSWER_TOKENS 16
/* Every so many samples one is held back, once there are so many. */
#define HOLD_EVERY 16
/* Estimates for choosing documents before any is tokenised. */
#define BYTES_PER_TOKEN 4
/* A document of so many bytes fills a sample. */
#define LONG_BYTES ((size_t)SAMPLE_TOKENS * 5)

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

/* Prompt lengths of successive samples: short ones leave more to fit to. */
static size_t choose_prompt(size_t i)
{
    static const size_t PAGES[] = {1, 2, 1, 4};
    return PAGES[i % (sizeof(PAGES) / sizeof(PAGES[0]))] * KERNEL_PAGE_TOKENS;
}

/* Whole pages of a prompt of so many tokens: one at least, and an answer behind. */
static uint32_t prompt_pages(size_t n_prompt, size_t n)
{
    size_t most = (n - MIN_ANSWER_TOKENS) / KERNEL_PAGE_TOKENS;
    size_t pages = n_prompt / KERNEL_PAGE_TOKENS;
    pages = pages < 1 ? 1 : pages;
    return (uint32_t)((pages < most ? pages : most) * KERNEL_PAGE_TOKENS);
}

/* The last n tokens of the set become a sample. n_prompt 0: chosen by its number. */
static int add_sample(struct sample_set *set, uint32_t n, size_t n_prompt, bool hold,
                      struct error *err)
{
    if (set->n_samples == set->cap) {
        size_t cap = set->cap ? 2 * set->cap : 64;
        struct sample *samples = mem_realloc(set->samples, cap, sizeof(*samples));
        if (!samples)
            return error_memory(err, "samples", cap * sizeof(*samples));
        set->samples = samples;
        set->cap = cap;
    }
    size_t i = set->n_samples++;
    struct sample *s = &set->samples[i];
    *s = (struct sample){
        .begin = set->tokens.n - n,
        .n = n,
        .n_prompt = prompt_pages(n_prompt ? n_prompt : choose_prompt(i), n),
        .answer = set->n_answer,
        .page = set->n_pages,
        .held = hold && i % HOLD_EVERY == HOLD_EVERY / 2,
    };
    set->n_answer += n - s->n_prompt;
    set->n_pages += (n + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    set->hash = hash_bytes(set->hash, set->tokens.ids + s->begin, n * sizeof(int32_t));
    set->hash = hash_bytes(set->hash, &n, sizeof(n));
    return 0;
}

static int encode_text(const struct sample_text *how, const struct buf *text,
                       struct token_list *ids, struct error *err)
{
    size_t n = text->len < 16 * LONG_BYTES ? text->len : 16 * LONG_BYTES;
    return n ? tokenizer_encode(how->tokenizer, text->data, n, 0, ids, err) : 0;
}

static int encode_messages(const struct sample_text *how, const struct chat_message *messages,
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
static int encode_chat(const struct sample_text *how, const struct document *d,
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

/* A sample of at most n_left tokens; too short ones, and chats without an answer, are left out. */
static int add_document(struct sample_set *set, const struct sample_text *how,
                        const struct document *d, size_t n_left, bool hold, struct error *err)
{
    struct token_list ids = {0};
    size_t n_prompt = 0;
    int rc = d->n_messages ? encode_chat(how, d, &ids, &n_prompt, err)
                           : encode_text(how, &d->text, &ids, err);
    size_t n = ids.n < SAMPLE_TOKENS ? ids.n : SAMPLE_TOKENS;
    n = n < n_left ? n : n_left;
    bool serves = n >= MIN_SAMPLE_TOKENS && n_prompt + MIN_ANSWER_TOKENS <= n;
    if (rc == 0 && serves)
        rc = token_list_append(&set->tokens, ids.ids, n, err);
    if (rc == 0 && serves)
        rc = add_sample(set, (uint32_t)n, n_prompt, hold, err);
    token_list_free(&ids);
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

/* Documents that fill a sample first, in shuffled order. */
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
        tokens += likely < SAMPLE_TOKENS ? likely : SAMPLE_TOKENS;
        list->n = i + 1;
    }
    qsort(list->rows, list->n, sizeof(*list->rows), by_number);
}

static int read_documents(const char *path, const struct sample_text *how, size_t end, bool hold,
                          struct sample_set *set, struct error *err)
{
    struct row_list list = {0};
    struct line_reader *reader = NULL;
    struct document document = {0};
    const char *line;
    size_t len;
    size_t at = 0;
    int rc = list_rows(path, &list, err);
    if (rc == 0 && list.n)
        choose_rows(&list, end - set->tokens.n);
    if (rc == 0)
        rc = line_reader_open(path, &reader, err);
    for (size_t number = 0; rc == 0 && at < list.n && set->tokens.n < end; number++) {
        rc = line_reader_next(reader, &line, &len, err);
        if (rc || !line)
            break;
        if (list.rows[at].number != number)
            continue;
        at++;
        rc = line_reader_document(reader, &document, err);
        if (rc == 0)
            rc = add_document(set, how, &document, end - set->tokens.n, hold, err);
    }
    document_free(&document);
    line_reader_close(reader);
    mem_free(list.rows);
    return rc;
}

static int read_plain(const char *path, const struct sample_text *how, size_t end, bool hold,
                      struct sample_set *set, struct error *err)
{
    struct line_reader *reader;
    _cleanup_buf_ struct buf text = {0};
    struct token_list ids = {0};
    const char *line;
    size_t len;
    size_t n_tokens = end - set->tokens.n;
    size_t most = n_tokens < SIZE_MAX / 8 ? 2 * BYTES_PER_TOKEN * n_tokens : SIZE_MAX;
    int rc = line_reader_open(path, &reader, err);
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
        rc = tokenizer_encode(how->tokenizer, text.data, text.len, 0, &ids, err);
    for (size_t i = 0; rc == 0 && i + MIN_SAMPLE_TOKENS <= ids.n && i < n_tokens;) {
        size_t n = ids.n - i < SAMPLE_TOKENS ? ids.n - i : SAMPLE_TOKENS;
        n = n < n_tokens - i ? n : n_tokens - i;
        if (n < MIN_SAMPLE_TOKENS)
            break;
        rc = token_list_append(&set->tokens, ids.ids + i, n, err);
        if (rc == 0)
            rc = add_sample(set, (uint32_t)n, 0, hold, err);
        i += n;
    }
    token_list_free(&ids);
    line_reader_close(reader);
    return rc;
}

/* A file that gives samples for its share of the tokens, or what others left of theirs. */
static int read_file(const char *path, const struct sample_text *how, size_t end, bool hold,
                     struct sample_set *set, struct error *err)
{
    size_t n_before = set->n_samples;
    int rc = path_is_jsonl(path) ? read_documents(path, how, end, hold, set, err)
                                 : read_plain(path, how, end, hold, set, err);
    if (rc == 0 && set->n_samples == n_before)
        rc = error_set(err, ERROR_INVALID, "calibration %s: it holds no text of %d tokens and more",
                       path, MIN_SAMPLE_TOKENS);
    return rc;
}

int samples_read(const char *const *paths, size_t n_paths, const struct sample_text *how,
                 size_t n_tokens, bool hold, struct sample_set *ret_set, struct error *err)
{
    struct sample_set set = {.hash = HASH_START};
    int rc = 0;
    for (size_t i = 0; i < n_paths && rc == 0; i++) {
        size_t share = (n_tokens - set.tokens.n) / (n_paths - i);
        rc = read_file(paths[i], how, set.tokens.n + share, hold, &set, err);
    }
    if (rc) {
        samples_free(&set);
        return rc;
    }
    *ret_set = set;
    return 0;
}

void samples_free(struct sample_set *set)
{
    token_list_free(&set->tokens);
    mem_free(set->samples);
    *set = (struct sample_set){0};
}
