/* Calibration text to tokens. See prune_internal.h. */
#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/prune/prune_internal.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A token is rarely more than this many bytes of text, so this much text is enough. */
#define BYTES_PER_TOKEN 8
#define MAX_LINE_BYTES ((size_t)16 << 20)

/* At most `most` bytes of the file. */
static int read_text(const char *path, size_t most, struct buf *text, struct error *err)
{
    char chunk[1 << 16];
    size_t n;
    FILE *f = fopen(path, "re");
    if (!f)
        return error_set(err, ERROR_IO, "calibration %s: %s", path, strerror(errno));
    while (text->len < most && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        buf_append(text, chunk, n);
    int failed = ferror(f);
    fclose(f);
    if (failed)
        return error_set(err, ERROR_IO, "calibration %s: cannot be read", path);
    if (text->failed)
        return error_memory(err, "calibration text", text->len);
    return 0;
}

static bool is_jsonl(const char *path)
{
    size_t len = strlen(path);
    return len > 6 && strcmp(path + len - 6, ".jsonl") == 0;
}

/* The text of one JSONL row: its prompt and completion, or its text. NULL: neither is there. */
static int append_row(const char *path, size_t line, const char *json, size_t len, struct buf *text,
                      struct error *err)
{
    static const char *const FIELDS[] = {"text", "prompt", "completion"};
    bool found = false;
    cJSON *row = len < MAX_LINE_BYTES ? cJSON_ParseWithLength(json, len) : NULL;
    if (!cJSON_IsObject(row)) {
        cJSON_Delete(row);
        return error_set(err, ERROR_FORMAT, "calibration %s: line %zu: expected a JSON object",
                         path, line);
    }
    for (size_t i = 0; i < 3; i++) {
        const cJSON *field = cJSON_GetObjectItemCaseSensitive(row, FIELDS[i]);
        if (!cJSON_IsString(field))
            continue;
        found |= i < 2;
        buf_append_str(text, field->valuestring);
        buf_append_str(text, "\n");
    }
    cJSON_Delete(row);
    if (!found)
        return error_set(err, ERROR_FORMAT,
                         "calibration %s: line %zu: expected a string `prompt` or `text`", path,
                         line);
    return 0;
}

/* The rows' texts one after another. The last line may be cut off by the size limit: it is left out
 * if it is not whole. */
static int join_rows(const char *path, const struct buf *raw, bool is_whole, struct buf *text,
                     struct error *err)
{
    const char *at = raw->data;
    const char *end = raw->data + raw->len;
    for (size_t line = 1; at < end; line++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline && !is_whole && text->len)
            return 0;
        size_t len = (size_t)((newline ? newline : end) - at);
        int rc = len ? append_row(path, line, at, len, text, err) : 0;
        if (rc)
            return rc;
        at += len + 1;
    }
    return text->failed ? error_memory(err, "calibration text", text->len) : 0;
}

int calibration_read(const char *path, const struct tokenizer *tokenizer, size_t n_tokens,
                     struct token_list *ret_tokens, uint64_t *ret_hash, struct error *err)
{
    _cleanup_buf_ struct buf raw = {0};
    _cleanup_buf_ struct buf rows = {0};
    struct buf *text = &raw;
    size_t most = n_tokens < SIZE_MAX / BYTES_PER_TOKEN ? n_tokens * BYTES_PER_TOKEN : SIZE_MAX;
    int rc = read_text(path, most, &raw, err);
    if (rc == 0 && raw.len && is_jsonl(path)) {
        rc = join_rows(path, &raw, raw.len < most, &rows, err);
        text = &rows;
    }
    if (rc == 0 && text->len)
        rc = tokenizer_encode(tokenizer, text->data, text->len, 0, ret_tokens, err);
    if (rc == 0 && !ret_tokens->n)
        rc = error_set(err, ERROR_INVALID, "calibration %s: it holds no text", path);
    if (rc)
        return rc;
    if (ret_tokens->n > n_tokens)
        ret_tokens->n = n_tokens;
    *ret_hash = hash_bytes(HASH_START, text->data, text->len);
    return 0;
}
