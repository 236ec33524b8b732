/* Data files: rows of JSONL, or one text. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)1 << 30)

static int read_file(const char *path, struct buf *data, struct error *err)
{
    char chunk[1 << 16];
    size_t n;
    FILE *f = fopen(path, "re");
    if (!f)
        return error_set(err, ERROR_IO, "data %s: %s", path, strerror(errno));
    while (data->len <= MAX_FILE_BYTES && (n = fread(chunk, 1, sizeof(chunk), f)) > 0)
        buf_append(data, chunk, n);
    bool failed = ferror(f);
    fclose(f);
    if (failed)
        return error_set(err, ERROR_IO, "data %s: cannot be read", path);
    if (data->failed)
        return error_memory(err, "data", data->len);
    if (data->len > MAX_FILE_BYTES)
        return error_set(err, ERROR_INVALID, "data %s: expected at most %zu bytes", path,
                         MAX_FILE_BYTES);
    return 0;
}

static bool is_blank(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!strchr(" \t\r\n", text[i]))
            return false;
    return true;
}

static int by_hash(const void *a, const void *b)
{
    const struct eval_row *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

static int split(struct eval_rows *rows, struct error *err)
{
    const char *at = rows->data.data, *end = at + rows->data.len;
    size_t n_lines = 1;
    for (const char *p = at; (p = memchr(p, '\n', (size_t)(end - p))); p++)
        n_lines++;
    rows->list = mem_array(n_lines, sizeof(*rows->list));
    if (!rows->list)
        return error_memory(err, "rows", n_lines * sizeof(*rows->list));
    for (size_t line = 1; at < end; line++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t len = (size_t)((newline ? newline : end) - at);
        if (!is_blank(at, len))
            rows->list[rows->n++] = (struct eval_row){eval_hash(at, len), line, at, len};
        at += len + 1;
    }
    qsort(rows->list, rows->n, sizeof(*rows->list), by_hash);
    return 0;
}

int eval_rows_read(const char *path, struct eval_rows *ret_rows, struct error *err)
{
    struct eval_rows rows = {.path = path};
    size_t len = strlen(path);
    rows.is_jsonl = len > 6 && strcmp(path + len - 6, ".jsonl") == 0;
    int rc = read_file(path, &rows.data, err);
    if (rc == 0 && is_blank(rows.data.data ? rows.data.data : "", rows.data.len))
        rc = error_set(err, ERROR_INVALID, "data %s: it is empty", path);
    if (rc == 0 && rows.is_jsonl)
        rc = split(&rows, err);
    if (rc) {
        eval_rows_free(&rows);
        return rc;
    }
    *ret_rows = rows;
    return 0;
}

void eval_rows_free(struct eval_rows *rows)
{
    buf_free(&rows->data);
    mem_free(rows->list);
    *rows = (struct eval_rows){0};
}

int eval_row_error(const struct eval_rows *rows, const struct eval_row *row, const char *what,
                   struct error *err)
{
    return error_set(err, ERROR_FORMAT, "data %s: line %zu: %s", rows->path, row->line, what);
}

int eval_row_parse(const struct eval_rows *rows, const struct eval_row *row, cJSON **ret_json,
                   struct error *err)
{
    cJSON *json = cJSON_ParseWithLength(row->text, row->len);
    if (!cJSON_IsObject(json)) {
        cJSON_Delete(json);
        return eval_row_error(rows, row, "expected a JSON object", err);
    }
    *ret_json = json;
    return 0;
}

int eval_row_string(const struct eval_rows *rows, const struct eval_row *row, const cJSON *json,
                    const char *key, const char **ret_text, struct error *err)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    char what[80];
    if (!cJSON_IsString(item) || !*item->valuestring) {
        snprintf(what, sizeof(what), "expected a string `%s`", key);
        return eval_row_error(rows, row, what, err);
    }
    *ret_text = item->valuestring;
    return 0;
}
