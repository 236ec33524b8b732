/* Writing JSON values. See json_write.h. */
#include "server/json_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

size_t utf8_char_len(const char *data, size_t len)
{
    const unsigned char *s = (const unsigned char *)data;
    size_t n;
    unsigned char low = 0x80, high = 0xbf; /* range of the second byte: RFC 3629, section 4 */

    if (len == 0)
        return 0;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        n = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        n = 3;
        if (s[0] == 0xe0)
            low = 0xa0;
        if (s[0] == 0xed)
            high = 0x9f; /* surrogates */
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        n = 4;
        if (s[0] == 0xf0)
            low = 0x90;
        if (s[0] == 0xf4)
            high = 0x8f;
    } else {
        return 0;
    }
    if (len < n || s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return n;
}

bool utf8_is_valid(const char *data, size_t len)
{
    for (size_t i = 0; i < len;) {
        size_t n = utf8_char_len(data + i, len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

/* Bytes that may stand in a JSON string as they are: printable ASCII without quote and backslash.
 */
static bool is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

static void write_control(struct buf *out, unsigned char c)
{
    static const char HEX[] = "0123456789abcdef";
    static const char SHORT[] = "\b\f\n\r\t\"\\";
    static const char LETTER[] = "bfnrt\"\\";
    const char *at = c ? strchr(SHORT, c) : NULL;
    char text[6] = {'\\', 'u', '0', '0', HEX[c >> 4], HEX[c & 15]};

    if (at) {
        text[1] = LETTER[at - SHORT];
        buf_append(out, text, 2);
    } else {
        buf_append(out, text, 6);
    }
}

void json_write_escaped(struct buf *out, const char *data, size_t len)
{
    size_t run = 0; /* start of the bytes not yet copied */
    size_t i = 0;

    if (len == 0)
        return; /* data may be NULL */
    buf_reserve(out, len);
    while (i < len) {
        unsigned char c = (unsigned char)data[i];
        if (is_plain(c)) {
            i++;
            continue;
        }
        size_t n = c < 0x80 ? 0 : utf8_char_len(data + i, len - i);
        if (n > 0) {
            i += n;
            continue;
        }
        buf_append(out, data + run, i - run);
        if (c < 0x80)
            write_control(out, c);
        else
            buf_append(out, "\xef\xbf\xbd", 3);
        run = ++i;
    }
    buf_append(out, data + run, i - run);
}

void json_write_string(struct buf *out, const char *data, size_t len)
{
    buf_append(out, "\"", 1);
    json_write_escaped(out, data, len);
    buf_append(out, "\"", 1);
}

void json_write_string_or_null(struct buf *out, const char *s)
{
    if (s)
        json_write_string(out, s, strlen(s));
    else
        buf_append(out, "null", 4);
}

void json_write_uint(struct buf *out, uint64_t value)
{
    char digits[20];
    size_t at = sizeof(digits);

    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    buf_append(out, digits + at, sizeof(digits) - at);
}

void json_write_float(struct buf *out, float value)
{
    char text[32];

    if (!isfinite(value)) {
        buf_append(out, "null", 4);
        return;
    }
    int n = snprintf(text, sizeof(text), "%.6g", (double)value);
    if (strtof(text, NULL) != value)
        n = snprintf(text, sizeof(text), "%.9g", (double)value);
    buf_append(out, text, (size_t)n);
}

void json_write_ms(struct buf *out, double value)
{
    char text[64];

    if (!isfinite(value) || fabs(value) > 1e15) {
        buf_append(out, "null", 4);
        return;
    }
    int n = snprintf(text, sizeof(text), "%.3f", value);
    buf_append(out, text, (size_t)n);
}
