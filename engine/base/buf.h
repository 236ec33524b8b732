/* A growable byte buffer with a sticky failure flag: append freely, check `failed` once at the end.
 * Zero-initialise (`struct buf b = {0}`), buf_free when done. Not thread-safe. */
#ifndef OVERFILL_ENGINE_BASE_BUF_H
#define OVERFILL_ENGINE_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* data[len] is NUL once anything was appended */
    size_t len;
    size_t cap;
    bool failed; /* an allocation failed; the content is incomplete */
};

bool buf_reserve(struct buf *b, size_t more); /* room for `more` bytes and a NUL */
void buf_append(struct buf *b, const void *data, size_t bytes);
void buf_append_str(struct buf *b, const char *s);
__attribute__((format(printf, 2, 3))) void buf_printf(struct buf *b, const char *fmt, ...);
void buf_clear(struct buf *b);                  /* len = 0, failed = false, keeps the memory */
char *buf_take(struct buf *b, size_t *ret_len); /* the caller owns it (mem_free); NULL if failed */
void buf_free(struct buf *b);
#define _cleanup_buf_ __attribute__((cleanup(buf_free)))

#endif
