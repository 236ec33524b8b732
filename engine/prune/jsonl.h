/* Lines of a text file, plain or gzipped, and the document in a JSONL row. Internal to
 * engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_JSONL_H
#define OVERFILL_ENGINE_PRUNE_JSONL_H

#include "engine/base/buf.h"
#include "engine/base/error.h"
#include "engine/tokenizer/chat_template.h"

#include <stdbool.h>
#include <stddef.h>

struct line_reader;

bool path_is_jsonl(const char *path); /* .jsonl or .jsonl.gz */

int line_reader_open(const char *path, struct line_reader **ret_reader, struct error *err);
void line_reader_close(struct line_reader *reader); /* NULL is fine */
/* The next line without its newline, valid until the next call; *ret_line NULL at the end. */
int line_reader_next(struct line_reader *reader, const char **ret_line, size_t *ret_len,
                     struct error *err);
/* A row: text as it is, or a chat whose messages point into text. */
struct document {
    struct buf text;
    struct chat_message *messages;
    size_t n_messages; /* 0: plain text */
};
void document_free(struct document *document); /* a zeroed one is fine */
/* The row of the last line replaces *document: `messages` (objects with `role` and `content`), or
 * `prompt` and `completion`, or `text`, with a line end between two. */
int line_reader_document(const struct line_reader *reader, struct document *document,
                         struct error *err);

#endif
