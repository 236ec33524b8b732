/* Text to token ids: special tokens first, then what lies between them, word by word (BPE) or as a
 * whole (SentencePiece). See tokenizer.h. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/merge.h"
#include "engine/tokenizer/tokenizer_internal.h"
#include "engine/tokenizer/utf8.h"

#include <string.h>

/* Positions are 32 bits, and SentencePiece writes a space as three bytes. */
#define MAX_TEXT_BYTES ((size_t)1 << 30)

int token_list_append(struct token_list *list, const int32_t *ids, size_t n, struct error *err)
{
    size_t need;
    if (!mem_add(list->n, n, &need))
        return error_memory(err, "token list", SIZE_MAX);
    if (need > list->cap) {
        size_t cap = list->cap ? list->cap : 64;
        while (cap < need)
            cap = cap <= SIZE_MAX / 2 ? 2 * cap : need;
        int32_t *grown = mem_realloc(list->ids, cap, sizeof(*grown));
        if (!grown)
            return error_memory(err, "token list", cap);
        list->ids = grown;
        list->cap = cap;
    }
    if (n)
        memcpy(list->ids + list->n, ids, n * sizeof(*ids));
    list->n = need;
    return 0;
}

void token_list_free(struct token_list *list)
{
    mem_free(list->ids);
    *list = (struct token_list){0};
}

/* One call of encode. */
struct encoder {
    const struct tokenizer *tokenizer;
    struct token_list *list;
    struct merge_workspace work;
    struct buf escaped; /* SentencePiece: the text with U+2581 for spaces */
    bool after_special; /* nothing, or a special token, was the last thing encoded */
};

static int append(struct encoder *e, int32_t id, struct error *err)
{
    if (e->list->n < e->list->cap) {
        e->list->ids[e->list->n++] = id;
        return 0;
    }
    return token_list_append(e->list, &id, 1, err);
}

/* The token that a word is as a whole, or -1. */
static int32_t find_whole(const struct tokenizer *t, const char *word, size_t len)
{
    char text[512];
    size_t n = 0;
    if (len > t->max_text_bytes || 2 * len > sizeof(text))
        return -1;
    for (size_t i = 0; i < len; i++)
        n += byte_alphabet_write((uint8_t)word[i], text + n);
    return text_table_find(&t->by_text, text, n);
}

/* A byte that the vocabulary lacks is dropped: byte-level vocabularies have no unknown. */
static int encode_word(void *user, const char *word, size_t len, struct error *err)
{
    struct encoder *e = user;
    const struct tokenizer *t = e->tokenizer;
    int32_t whole = pre_tokenizer_ignores_merges(t->pre) ? find_whole(t, word, len) : -1;
    int rc = 0;

    if (whole >= 0)
        return append(e, whole, err);
    e->work.n = 0;
    for (size_t i = 0; i < len && rc == 0; i++)
        rc = merge_add_symbol(&e->work, t->byte_id[(unsigned char)word[i]], i, err);
    if (rc == 0)
        rc = merge_run(&e->work, &t->merges, err);
    for (uint32_t i = 0; rc == 0 && i != MERGE_NONE; i = e->work.symbols[i].next)
        if (e->work.symbols[i].id >= 0)
            rc = append(e, e->work.symbols[i].id, err);
    return rc;
}

static size_t count_spaces(const char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += text[i] == ' ';
    return n;
}

static int escape_spaces(struct encoder *e, const char *text, size_t len, struct error *err)
{
    size_t bytes = len + (count_spaces(text, len) + 1) * SPACE_PIECE_BYTES;

    buf_clear(&e->escaped);
    if (!buf_reserve(&e->escaped, bytes))
        return error_memory(err, "text to tokenise", bytes);
    if (e->tokenizer->vocab->add_space_prefix && e->after_special)
        buf_append(&e->escaped, SPACE_PIECE, SPACE_PIECE_BYTES);
    for (size_t at = 0; at < len;) {
        const char *space = memchr(text + at, ' ', len - at);
        size_t plain = space ? (size_t)(space - text) - at : len - at;
        buf_append(&e->escaped, text + at, plain);
        if (space)
            buf_append(&e->escaped, SPACE_PIECE, SPACE_PIECE_BYTES);
        at += plain + (space != NULL);
    }
    return 0;
}

/* Text without a token goes byte by byte; without bytes in the vocabulary it is unknown. */
static int append_bytes(struct encoder *e, size_t start, size_t end, struct error *err)
{
    const struct tokenizer *t = e->tokenizer;
    int rc = 0;
    for (size_t i = start; i < end && rc == 0; i++) {
        int32_t id = t->byte_id[(unsigned char)e->escaped.data[i]];
        if (id < 0)
            id = t->vocab->unk;
        if (id >= 0)
            rc = append(e, id, err);
    }
    return rc;
}

static bool is_space_piece(const struct encoder *e, size_t at)
{
    return e->escaped.len - at >= SPACE_PIECE_BYTES &&
           memcmp(e->escaped.data + at, SPACE_PIECE, SPACE_PIECE_BYTES) == 0;
}

/* Symbols for the characters from `at` on, up to the end of what may merge: the text's end, or
 * where the vocabulary lets no merge go on. Returns that end in *ret_end. */
static int add_characters(struct encoder *e, size_t at, size_t *ret_end, struct error *err)
{
    const struct tokenizer *t = e->tokenizer;
    bool after_other = false;
    size_t step;
    int rc = 0;

    e->work.n = 0;
    for (; at < e->escaped.len && rc == 0; at += step) {
        const char *c = e->escaped.data + at;
        bool is_space = is_space_piece(e, at);
        if (t->space_starts_words && is_space && after_other)
            break;
        if (utf8_next(c, e->escaped.len - at, &step) != UTF8_CHARACTER)
            step = 1;
        rc = merge_add_symbol(&e->work, text_table_find(&t->by_text, c, step), at, err);
        after_other = !is_space;
    }
    *ret_end = at;
    return rc;
}

static int append_symbols(struct encoder *e, size_t text_end, struct error *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i != MERGE_NONE;) {
        const struct symbol *s = &e->work.symbols[i];
        size_t end = s->next == MERGE_NONE ? text_end : e->work.symbols[s->next].start;
        rc = s->id >= 0 ? append(e, s->id, err) : append_bytes(e, s->start, end, err);
        i = s->next;
    }
    return rc;
}

static int encode_spm(struct encoder *e, const char *text, size_t len, struct error *err)
{
    int rc = escape_spaces(e, text, len, err);

    for (size_t at = 0, end; at < e->escaped.len && rc == 0; at = end) {
        rc = add_characters(e, at, &end, err);
        if (rc == 0)
            rc = merge_run(&e->work, &e->tokenizer->merges, err);
        if (rc == 0)
            rc = append_symbols(e, end, err);
    }
    return rc;
}

static int encode_plain(struct encoder *e, const char *text, size_t len, struct error *err)
{
    int rc;
    if (len == 0)
        return 0;
    if (e->tokenizer->vocab->model == VOCAB_SPM)
        rc = encode_spm(e, text, len, err);
    else
        rc = pre_tokenizer_split(e->tokenizer->pre, text, len, encode_word, e, err);
    e->after_special = false;
    return rc;
}

static int encode_spans(struct encoder *e, const char *text, size_t len,
                        const struct chat_span *spans, size_t n_spans, struct error *err)
{
    size_t plain = 0, at = 0; /* text[plain, at) is waiting to be encoded */
    size_t span = 0;
    int rc = 0;

    while (at < len && rc == 0) {
        while (span < n_spans && at >= spans[span].start + spans[span].len)
            span++;
        size_t control_len = 0, match_len = 0;
        if (span < n_spans && spans[span].special)
            control_len = spans[span].start + spans[span].len - at;
        int32_t id =
            special_match(&e->tokenizer->specials, text + at, len - at, control_len, &match_len);
        if (id < 0) {
            at++;
            continue;
        }
        rc = encode_plain(e, text + plain, at - plain, err);
        if (rc == 0)
            rc = append(e, id, err);
        e->after_special = true;
        at += match_len;
        plain = at;
    }
    return rc ? rc : encode_plain(e, text + plain, len - plain, err);
}

int tokenizer_encode_spans(const struct tokenizer *tokenizer, const char *text, size_t len,
                           const struct chat_span *spans, size_t n_spans, struct token_list *list,
                           struct error *err)
{
    struct encoder e = {.tokenizer = tokenizer, .list = list, .after_special = true};

    if (len > MAX_TEXT_BYTES)
        return error_set(err, ERROR_INVALID, "text: at most %zu bytes expected, found %zu",
                         MAX_TEXT_BYTES, len);
    int rc = encode_spans(&e, text, len, spans, n_spans, err);
    merge_workspace_free(&e.work);
    buf_free(&e.escaped);
    return rc;
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                     unsigned flags, struct token_list *list, struct error *err)
{
    const struct vocab *v = tokenizer->vocab;
    struct chat_span whole = {.len = len, .special = flags & TOKENIZER_PARSE_SPECIAL};
    int rc = 0;

    if (flags & TOKENIZER_ADD_SPECIAL && v->add_bos && v->bos >= 0)
        rc = token_list_append(list, &v->bos, 1, err);
    if (rc == 0)
        rc = tokenizer_encode_spans(tokenizer, text, len, &whole, 1, list, err);
    if (rc == 0 && flags & TOKENIZER_ADD_SPECIAL && v->add_eos && v->eos >= 0)
        rc = token_list_append(list, &v->eos, 1, err);
    return rc;
}
