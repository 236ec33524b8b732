/* Log-probabilities as JSON text. See logprobs.h. A token may be a part of a character; its string
 * is then an escaped list of its bytes, in chat `\xe2\x80`, in legacy completions `bytes:\xe2\x80`,
 * as OpenAI writes it. */
#include "server/logprobs.h"

#include "server/json_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void logprob_text_clear(struct logprob_text *l)
{
    buf_clear(&l->tokens);
    buf_clear(&l->values);
    buf_clear(&l->tops);
    buf_clear(&l->offsets);
}

void logprob_text_free(struct logprob_text *l)
{
    buf_free(&l->tokens);
    buf_free(&l->values);
    buf_free(&l->tops);
    buf_free(&l->offsets);
}

bool logprob_text_failed(const struct logprob_text *l)
{
    return l->tokens.failed || l->values.failed || l->tops.failed || l->offsets.failed;
}

static void comma(struct buf *b)
{
    if (b->len)
        buf_append(b, ",", 1);
}

static void append_list(struct buf *list, const struct buf *more)
{
    if (more->len == 0)
        return;
    comma(list);
    buf_append(list, more->data, more->len);
}

void logprob_text_append(struct logprob_text *l, const struct logprob_text *more)
{
    append_list(&l->tokens, &more->tokens);
    append_list(&l->values, &more->values);
    append_list(&l->tops, &more->tops);
    append_list(&l->offsets, &more->offsets);
}

static const char *piece_of(const struct tokenizer *tokenizer, int32_t token, size_t *ret_len)
{
    const char *piece = tokenizer_piece(tokenizer, token, ret_len);
    if (piece)
        return piece;
    *ret_len = 0;
    return "";
}

static void write_token_string(struct buf *out, const char *piece, size_t len, const char *prefix)
{
    char byte[8];

    if (utf8_is_valid(piece, len)) {
        json_write_string(out, piece, len);
        return;
    }
    buf_append(out, "\"", 1);
    buf_append_str(out, prefix);
    for (size_t i = 0; i < len; i++) {
        int n = snprintf(byte, sizeof(byte), "\\\\x%02x", (unsigned char)piece[i]);
        buf_append(out, byte, (size_t)n);
    }
    buf_append(out, "\"", 1);
}

/* JSON has no infinity: -9999 is what OpenAI sends for a probability of zero. */
static void write_logprob(struct buf *out, float logprob)
{
    json_write_float(out, isinf(logprob) || logprob < -9999.0f ? -9999.0f : logprob);
}

/* "token":..,"logprob":..,"bytes":[..] */
static void write_chat_members(struct buf *out, const struct tokenizer *tokenizer, int32_t token,
                               float logprob)
{
    size_t len;
    const char *piece = piece_of(tokenizer, token, &len);

    buf_append_str(out, "{\"token\":");
    write_token_string(out, piece, len, "");
    buf_append_str(out, ",\"logprob\":");
    write_logprob(out, logprob);
    buf_append_str(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        json_write_uint(out, (unsigned char)piece[i]);
    }
    buf_append(out, "]", 1);
}

void logprobs_add_chat(struct logprob_text *l, const struct tokenizer *tokenizer,
                       const struct engine_token *record, const struct token_logprob *top)
{
    struct buf *out = &l->tokens;

    comma(out);
    write_chat_members(out, tokenizer, record->token, record->logprob);
    buf_append_str(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < record->n_top; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        write_chat_members(out, tokenizer, top[i].token, top[i].logprob);
        buf_append(out, "}", 1);
    }
    buf_append(out, "]}", 2);
}

static void write_legacy_token(struct buf *out, const struct tokenizer *tokenizer, int32_t token)
{
    size_t len;
    const char *piece = piece_of(tokenizer, token, &len);
    write_token_string(out, piece, len, "bytes:");
}

/* {"token": logprob, ...}: the best ones, and the token itself if it is not among them. */
static void write_legacy_top(struct buf *out, const struct tokenizer *tokenizer,
                             const struct engine_token *record, const struct token_logprob *top)
{
    bool has_own = false;

    buf_append(out, "{", 1);
    for (uint32_t i = 0; i < record->n_top; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        write_legacy_token(out, tokenizer, top[i].token);
        buf_append(out, ":", 1);
        write_logprob(out, top[i].logprob);
        has_own |= top[i].token == record->token;
    }
    if (!has_own) {
        if (record->n_top > 0)
            buf_append(out, ",", 1);
        write_legacy_token(out, tokenizer, record->token);
        buf_append(out, ":", 1);
        write_logprob(out, record->logprob);
    }
    buf_append(out, "}", 1);
}

static size_t count_characters(const char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

void logprobs_add_legacy(struct logprob_text *l, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top,
                         size_t *offset)
{
    size_t len;
    const char *piece = piece_of(tokenizer, record->token, &len);

    comma(&l->tokens);
    write_token_string(&l->tokens, piece, len, "bytes:");
    comma(&l->values);
    comma(&l->tops);
    if (isnan(record->logprob)) {
        buf_append_str(&l->values, "null");
        buf_append_str(&l->tops, "null");
    } else {
        write_logprob(&l->values, record->logprob);
        write_legacy_top(&l->tops, tokenizer, record, top);
    }
    comma(&l->offsets);
    json_write_uint(&l->offsets, *offset);
    *offset += count_characters(piece, len);
}

static void write_ranked(struct buf *out, const struct tokenizer *tokenizer, int32_t token,
                         float logprob, uint32_t rank)
{
    size_t len;
    const char *piece = piece_of(tokenizer, token, &len);

    buf_printf(out, "\"%d\":{\"logprob\":", (int)token);
    write_logprob(out, logprob);
    buf_printf(out, ",\"rank\":%u,\"decoded_token\":", rank);
    write_token_string(out, piece, len, "");
    buf_append(out, "}", 1);
}

void logprobs_add_prompt(struct buf *out, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top)
{
    comma(out);
    if (isnan(record->logprob)) {
        buf_append_str(out, "null");
        return;
    }
    buf_append(out, "{", 1);
    write_ranked(out, tokenizer, record->token, record->logprob, record->rank);
    for (uint32_t i = 0; i < record->n_top; i++) {
        if (top[i].token == record->token)
            continue;
        buf_append(out, ",", 1);
        write_ranked(out, tokenizer, top[i].token, top[i].logprob, i + 1);
    }
    buf_append(out, "}", 1);
}

static void write_list(struct buf *out, const char *name, const struct buf *items)
{
    buf_append_str(out, name);
    if (items->len)
        buf_append(out, items->data, items->len);
    buf_append(out, "]", 1);
}

void logprobs_write_chat(struct buf *out, const struct logprob_text *l)
{
    write_list(out, "{\"content\":[", &l->tokens);
    buf_append_str(out, ",\"refusal\":null}");
}

void logprobs_write_legacy(struct buf *out, const struct logprob_text *l, bool with_top)
{
    write_list(out, "{\"tokens\":[", &l->tokens);
    write_list(out, ",\"token_logprobs\":[", &l->values);
    if (with_top)
        write_list(out, ",\"top_logprobs\":[", &l->tops);
    else
        buf_append_str(out, ",\"top_logprobs\":null");
    write_list(out, ",\"text_offset\":[", &l->offsets);
    buf_append(out, "}", 1);
}
