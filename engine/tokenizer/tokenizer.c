/* Opening a tokenizer: kinds, look-up tables and pieces from a vocabulary; and everything that is a
 * look-up afterwards. Encoding is in encode.c. See tokenizer.h. */
#include "engine/tokenizer/tokenizer.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/tokenizer_internal.h"
#include "engine/tokenizer/utf8.h"

#include <assert.h>
#include <string.h>

/* A longer token is found by no merge; SentencePiece's own limit is far lower. */
#define MAX_SPM_TOKEN_BYTES 1024

/* Texts with which models end a turn or an answer, whatever the file says about their kind. */
static const char *const end_texts[] = {
    "<|im_end|>",    "<|eot_id|>",    "<|eom_id|>",      "<|end|>",
    "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>",
    "</s>",          "<EOT>",         "<eos>",
};

static bool has_text(const struct vocab *vocab, uint32_t id, const char *text)
{
    size_t len = strlen(text);
    return vocab->text[id].len == len && memcmp(vocab->text[id].data, text, len) == 0;
}

static bool is_end_text(const struct vocab *vocab, uint32_t id)
{
    for (size_t i = 0; i < sizeof(end_texts) / sizeof(end_texts[0]); i++)
        if (has_text(vocab, id, end_texts[i]))
            return true;
    return false;
}

/* Ends by their text become control tokens: files often call them user-defined, and then a client's
 * text could end a turn. */
static int find_kinds(struct tokenizer *t, struct error *err)
{
    const struct vocab *v = t->vocab;

    t->is_control = mem_calloc(v->n_tokens, sizeof(bool));
    t->is_end = mem_calloc(v->n_tokens, sizeof(bool));
    if (!t->is_control || !t->is_end)
        return error_memory(err, "token kinds", v->n_tokens);
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        bool control = v->kind[id] == TOKEN_CONTROL || v->kind[id] == TOKEN_UNKNOWN;
        bool by_text = is_end_text(v, id);
        t->is_end[id] = by_text || (int32_t)id == v->eos || (int32_t)id == v->eot;
        t->is_control[id] = control || by_text;
    }
    return 0;
}

static int fill_specials(struct tokenizer *t, struct error *err)
{
    int rc = 0;
    for (uint32_t id = 0; id < t->vocab->n_tokens && rc == 0; id++)
        if (t->is_control[id] || t->vocab->kind[id] == TOKEN_USER_DEFINED)
            rc = special_add(&t->specials, t->vocab->text[id], (int32_t)id, t->is_control[id], err);
    return rc;
}

/* What text can become without being asked for: no control tokens, and no SentencePiece byte, whose
 * text "<0x0A>" is a name. */
static bool is_mergeable(const struct tokenizer *t, uint32_t id)
{
    return !t->is_control[id] && t->vocab->text[id].len > 0 &&
           (t->vocab->model == VOCAB_BPE || t->vocab->kind[id] != TOKEN_BYTE);
}

static int fill_by_text(struct tokenizer *t, struct error *err)
{
    const struct vocab *v = t->vocab;
    int rc = text_table_open(&t->by_text, v->text, v->n_tokens, err);

    for (uint32_t id = 0; id < v->n_tokens && rc == 0; id++) {
        if (!is_mergeable(t, id))
            continue;
        text_table_add(&t->by_text, (int32_t)id);
        if (v->text[id].len > t->max_text_bytes)
            t->max_text_bytes = v->text[id].len;
    }
    return rc;
}

/* The byte that "<0x0A>" names, or -1. */
static int named_byte(struct vocab_string s)
{
    int value = 0;
    if (s.len != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = s.data[i];
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + (c - 'A' + 10);
        else
            return -1;
    }
    return value;
}

static void fill_byte_ids(struct tokenizer *t)
{
    const struct vocab *v = t->vocab;

    for (int byte = 0; byte < 256; byte++) {
        char text[2] = {(char)byte};
        size_t len = v->model == VOCAB_BPE ? byte_alphabet_write((uint8_t)byte, text) : 1;
        t->byte_id[byte] = text_table_find(&t->by_text, text, len);
    }
    for (uint32_t id = 0; id < v->n_tokens && v->model == VOCAB_SPM; id++) {
        int byte = named_byte(v->text[id]);
        if (byte >= 0)
            t->byte_id[byte] = (int32_t)id;
    }
}

/* "left right"; the space may be the left one's own first character. A merge of tokens that do not
 * exist can never happen: it is left out, as other readers do. */
static int fill_bpe_merges(struct tokenizer *t, struct error *err)
{
    const struct vocab *v = t->vocab;
    int rc = 0;

    for (uint32_t rank = 0; rank < v->n_merges && rc == 0; rank++) {
        const char *s = v->merges[rank].data;
        uint32_t len = v->merges[rank].len;
        char joined[1024];
        const char *space = len > 1 ? memchr(s + 1, ' ', len - 1) : NULL;
        if (!space || len - 1 > sizeof(joined))
            continue;
        size_t n_left = (size_t)(space - s), n_right = len - n_left - 1;
        memcpy(joined, s, n_left);
        memcpy(joined + n_left, space + 1, n_right);
        struct merge m = {.left = text_table_find(&t->by_text, s, n_left),
                          .right = text_table_find(&t->by_text, space + 1, n_right),
                          .merged = text_table_find(&t->by_text, joined, n_left + n_right),
                          .order = rank};
        if (m.left >= 0 && m.right >= 0 && m.merged >= 0)
            rc = merge_table_add(&t->merges, m, err);
    }
    return rc;
}

/* Higher scores first: the bits of a float, turned so that unsigned order is descending. */
static uint32_t order_of_score(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof(bits));
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

/* SentencePiece merges any two neighbours whose text together is a token. */
static int add_spm_pairs(struct tokenizer *t, int32_t id, struct error *err)
{
    struct vocab_string s = t->vocab->text[id];
    float score = t->vocab->score ? t->vocab->score[id] : 0;
    size_t step;
    int rc = 0;

    if (s.len > MAX_SPM_TOKEN_BYTES)
        return 0;
    utf8_next(s.data, s.len, &step);
    for (size_t at = step; at < s.len && rc == 0; at += step) {
        struct merge m = {.left = text_table_find(&t->by_text, s.data, at),
                          .right = text_table_find(&t->by_text, s.data + at, s.len - at),
                          .merged = id,
                          .order = order_of_score(score)};
        if (m.left >= 0 && m.right >= 0)
            rc = merge_table_add(&t->merges, m, err);
        utf8_next(s.data + at, s.len - at, &step);
    }
    return rc;
}

/* A space (U+2581) that has something other than a space before it. */
static bool has_inner_space(struct vocab_string s)
{
    size_t step;
    bool after_other = false;
    for (size_t at = 0; at < s.len; at += step) {
        utf8_next(s.data + at, s.len - at, &step);
        bool is_space = step == SPACE_PIECE_BYTES && memcmp(s.data + at, SPACE_PIECE, step) == 0;
        if (is_space && after_other)
            return true;
        after_other = !is_space;
    }
    return false;
}

static int fill_merges(struct tokenizer *t, struct error *err)
{
    const struct vocab *v = t->vocab;
    int rc = 0;

    if (v->model == VOCAB_BPE)
        return fill_bpe_merges(t, err);
    t->space_starts_words = true;
    for (uint32_t id = 0; id < v->n_tokens; id++)
        if (is_mergeable(t, id) && has_inner_space(v->text[id]))
            t->space_starts_words = false;
    for (uint32_t id = 0; id < v->n_tokens && rc == 0; id++)
        if (is_mergeable(t, id) &&
            text_table_find(&t->by_text, v->text[id].data, v->text[id].len) == (int32_t)id)
            rc = add_spm_pairs(t, (int32_t)id, err);
    return rc;
}

/* Writes the bytes that a token stands for, at most as many as its text has; returns how many. */
static size_t write_piece(const struct tokenizer *t, uint32_t id, char *out)
{
    struct vocab_string s = t->vocab->text[id];
    bool bpe = t->vocab->model == VOCAB_BPE;
    size_t n = 0, step;
    int byte;

    if (t->is_control[id] || (bpe && t->vocab->kind[id] == TOKEN_USER_DEFINED)) {
        if (s.len)
            memcpy(out, s.data, s.len);
        return s.len;
    }
    if (!bpe && t->vocab->kind[id] == TOKEN_BYTE && (byte = named_byte(s)) >= 0) {
        out[0] = (char)byte;
        return 1;
    }
    for (size_t at = 0; at < s.len; at += step) {
        const char *c = s.data + at;
        utf8_next(c, s.len - at, &step);
        if (bpe && (byte = byte_alphabet_read(c, step)) >= 0) {
            out[n++] = (char)byte;
        } else if (!bpe && step == SPACE_PIECE_BYTES && memcmp(c, SPACE_PIECE, step) == 0) {
            out[n++] = ' ';
        } else {
            memcpy(out + n, c, step);
            n += step;
        }
    }
    return n;
}

static int fill_pieces(struct tokenizer *t, struct error *err)
{
    const struct vocab *v = t->vocab;
    size_t bytes = 0;

    for (uint32_t id = 0; id < v->n_tokens; id++)
        bytes += v->text[id].len;
    t->piece_bytes = mem_alloc(bytes);
    t->piece_start = mem_array((size_t)v->n_tokens + 1, sizeof(*t->piece_start));
    if (!t->piece_bytes || !t->piece_start)
        return error_memory(err, "token pieces", bytes);
    bytes = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        t->piece_start[id] = bytes;
        bytes += write_piece(t, id, t->piece_bytes + bytes);
    }
    t->piece_start[v->n_tokens] = bytes;
    return 0;
}

static int check_vocab(const struct vocab *vocab, struct error *err)
{
    const int32_t ids[] = {vocab->bos, vocab->eos, vocab->eot, vocab->unk, vocab->pad};

    if (vocab->n_tokens == 0 || vocab->n_tokens > INT32_MAX)
        return error_set(err, ERROR_FORMAT, "vocabulary: 1 to 2^31 tokens expected, found %u",
                         vocab->n_tokens);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
        if (ids[i] < -1 || ids[i] >= (int32_t)vocab->n_tokens)
            return error_set(err, ERROR_FORMAT,
                             "vocabulary: special token: an id below %u expected, found %d",
                             vocab->n_tokens, ids[i]);
    return 0;
}

int tokenizer_open(const struct vocab *vocab, struct tokenizer **ret_tokenizer, struct error *err)
{
    typedef int step_fn(struct tokenizer *, struct error *);
    static step_fn *const steps[] = {find_kinds, fill_specials, fill_by_text, fill_merges,
                                     fill_pieces};
    int rc = check_vocab(vocab, err);

    if (rc)
        return rc;
    struct tokenizer *t = mem_calloc(1, sizeof(*t));
    if (!t)
        return error_memory(err, "tokenizer", sizeof(*t));
    t->vocab = vocab;
    if (vocab->model == VOCAB_BPE)
        rc = pre_tokenizer_open(vocab->pre, &t->pre, err);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && rc == 0; i++)
        rc = steps[i](t, err);
    if (rc) {
        tokenizer_close(t);
        return rc;
    }
    fill_byte_ids(t);
    *ret_tokenizer = t;
    return 0;
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    pre_tokenizer_close(tokenizer->pre);
    text_table_free(&tokenizer->by_text);
    merge_table_free(&tokenizer->merges);
    special_free(&tokenizer->specials);
    mem_free(tokenizer->piece_bytes);
    mem_free(tokenizer->piece_start);
    mem_free(tokenizer->is_control);
    mem_free(tokenizer->is_end);
    mem_free(tokenizer);
}

const struct vocab *tokenizer_vocab(const struct tokenizer *tokenizer)
{
    return tokenizer->vocab;
}

static bool is_id(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (uint32_t)id < tokenizer->vocab->n_tokens;
}

const char *tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, size_t *ret_len)
{
    if (!is_id(tokenizer, id))
        return NULL;
    *ret_len = tokenizer->piece_start[id + 1] - tokenizer->piece_start[id];
    return tokenizer->piece_bytes + tokenizer->piece_start[id];
}

bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id)
{
    return is_id(tokenizer, id) && tokenizer->is_control[id];
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    return is_id(tokenizer, id) && tokenizer->is_end[id];
}

static uint64_t hash_strings(uint64_t h, const struct vocab_string *strings, uint32_t n)
{
    h = hash_bytes(h, &n, sizeof(n));
    for (uint32_t i = 0; i < n; i++) {
        h = hash_bytes(h, &strings[i].len, sizeof(strings[i].len));
        h = hash_bytes(h, strings[i].data, strings[i].len);
    }
    return h;
}

uint64_t tokenizer_hash(const struct tokenizer *tokenizer)
{
    const struct vocab *v = tokenizer->vocab;
    uint64_t h = hash_bytes(HASH_START, v->pre, strlen(v->pre));

    h = hash_strings(h, v->text, v->n_tokens);
    h = hash_bytes(h, v->kind, v->n_tokens);
    h = hash_strings(h, v->merges, v->n_merges);
    if (v->score)
        h = hash_bytes(h, v->score, v->n_tokens * sizeof(*v->score));
    return h;
}
