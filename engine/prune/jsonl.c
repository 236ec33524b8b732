/* Reading calibration files line by line through zlib, which passes plain files through. */
#include "engine/prune/jsonl.h"

#include "engine/base/mem.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <string.h>
#include <zlib.h>

#define MAX_LINE_BYTES ((size_t)16 << 20)

struct line_reader {
    char *path;
    gzFile file;
    size_t number; /* of the last line, from 1 */
    struct buf line;
};

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s);
    size_t m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

bool path_is_jsonl(const char *path)
{
    return ends_with(path, ".jsonl") || ends_with(path, ".jsonl.gz");
}

int line_reader_open(const char *path, struct line_reader **ret_reader, struct error *err)
{
    struct line_reader *r = mem_calloc(1, sizeof(*r));
    if (!r || !(r->path = mem_strdup(path))) {
        mem_free(r);
        return error_memory(err, "calibration reader", sizeof(*r));
    }
    r->file = gzopen(path, "rbe");
    if (!r->file) {
        int rc = error_set(err, ERROR_IO, "calibration %s: %s", path, strerror(errno));
        line_reader_close(r);
        return rc;
    }
    *ret_reader = r;
    return 0;
}

void line_reader_close(struct line_reader *r)
{
    if (!r)
        return;
    if (r->file)
        gzclose(r->file);
    buf_free(&r->line);
    mem_free(r->path);
    mem_free(r);
}

int line_reader_next(struct line_reader *r, const char **ret_line, size_t *ret_len,
                     struct error *err)
{
    char chunk[4096];
    r->line.len = 0;
    r->number++;
    while (gzgets(r->file, chunk, sizeof(chunk))) {
        size_t n = strlen(chunk);
        buf_append(&r->line, chunk, n);
        if (n && chunk[n - 1] == '\n')
            break;
        if (r->line.len > MAX_LINE_BYTES)
            return error_set(err, ERROR_FORMAT, "calibration %s: line %zu: longer than %zu bytes",
                             r->path, r->number, MAX_LINE_BYTES);
    }
    int failed;
    const char *why = gzerror(r->file, &failed);
    if (failed != Z_OK && failed != Z_STREAM_END)
        return error_set(err, ERROR_IO, "calibration %s: %s", r->path, why);
    if (r->line.failed)
        return error_memory(err, "calibration text", r->line.len);
    bool has_newline = r->line.len && r->line.data[r->line.len - 1] == '\n';
    *ret_line = r->line.len ? r->line.data : NULL;
    *ret_len = r->line.len - has_newline;
    return 0;
}

void document_free(struct document *document)
{
    buf_free(&document->text);
    mem_free(document->messages);
    *document = (struct document){0};
}

static bool read_text(const cJSON *row, struct buf *text)
{
    static const char *const FIELDS[] = {"text", "prompt", "completion"};
    bool found = false;
    for (size_t i = 0; i < 3; i++) {
        const cJSON *field = cJSON_GetObjectItemCaseSensitive(row, FIELDS[i]);
        if (!cJSON_IsString(field))
            continue;
        if (found)
            buf_append_str(text, "\n");
        found = true;
        buf_append_str(text, field->valuestring);
    }
    return found;
}

static const char *string_of(const cJSON *message, const char *name)
{
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(message, name);
    return cJSON_IsString(field) ? field->valuestring : NULL;
}

/* Roles and contents, each with its NUL, to text, which may move until all are there. */
static int read_messages(const struct line_reader *r, const cJSON *list, struct document *d,
                         struct error *err)
{
    size_t n = (size_t)cJSON_GetArraySize(list);
    const cJSON *message;
    struct chat_message *messages = mem_realloc(d->messages, n + 1, sizeof(*messages));
    if (!messages)
        return error_memory(err, "calibration text", n * sizeof(*messages));
    d->messages = messages;
    cJSON_ArrayForEach(message, list)
    {
        const char *role = string_of(message, "role");
        const char *content = string_of(message, "content");
        if (!role || !content)
            return error_set(err, ERROR_FORMAT,
                             "calibration %s: line %zu: messages[%zu]: expected strings `role` and "
                             "`content`",
                             r->path, r->number, d->n_messages);
        buf_append(&d->text, role, strlen(role) + 1);
        buf_append(&d->text, content, strlen(content) + 1);
        d->messages[d->n_messages++].content_len = strlen(content);
    }
    const char *at = d->text.data;
    for (size_t i = 0; i < d->n_messages && !d->text.failed; i++) {
        d->messages[i].role = at;
        d->messages[i].content = at + strlen(at) + 1;
        at = d->messages[i].content + d->messages[i].content_len + 1;
    }
    return 0;
}

int line_reader_document(const struct line_reader *r, struct document *d, struct error *err)
{
    int rc = 0;
    cJSON *row = cJSON_ParseWithLength(r->line.data, r->line.len);
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(row, "messages");
    d->text.len = 0;
    d->n_messages = 0;
    if (!cJSON_IsObject(row))
        rc = error_set(err, ERROR_FORMAT, "calibration %s: line %zu: expected a JSON object",
                       r->path, r->number);
    else if (cJSON_IsArray(messages))
        rc = read_messages(r, messages, d, err);
    else if (!read_text(row, &d->text))
        rc = error_set(err, ERROR_FORMAT,
                       "calibration %s: line %zu: expected a string `prompt` or `text`, or a list "
                       "`messages`",
                       r->path, r->number);
    cJSON_Delete(row);
    return rc == 0 && d->text.failed ? error_memory(err, "calibration text", d->text.len) : rc;
}
