/* JSON text straight into a buffer: what the hot path of a stream uses instead of a JSON tree.
 * The caller writes the punctuation; these functions write the values that need care. A failed
 * allocation shows in out->failed. */
#ifndef OVERFILL_SERVER_JSON_WRITE_H
#define OVERFILL_SERVER_JSON_WRITE_H

#include "engine/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A quoted string. Bytes that are not UTF-8 become U+FFFD, so the output is always valid JSON. */
void json_write_string(struct buf *out, const char *data, size_t len);
void json_write_string_or_null(struct buf *out, const char *s);
/* The same without the quotes: text that is appended to a string already open. */
void json_write_escaped(struct buf *out, const char *data, size_t len);
void json_write_uint(struct buf *out, uint64_t value);
/* Shortest of the forms that give back the same float; null when it is not finite. */
void json_write_float(struct buf *out, float value);
/* Three decimals; null when it is not finite. For milliseconds and rates. */
void json_write_ms(struct buf *out, double value);

/* Length in bytes of the valid UTF-8 character at data[0..len), 0 if there is none. */
size_t utf8_char_len(const char *data, size_t len);
bool utf8_is_valid(const char *data, size_t len);

#endif
