/* UTF-8 by the table of well-formed byte sequences (Unicode 3.9, table 3-7). See utf8.h. */
#include "engine/tokenizer/utf8.h"

enum utf8_step utf8_next(const char *s, size_t len, size_t *ret_len)
{
    const unsigned char *p = (const unsigned char *)s;
    unsigned char lead = p[0], low = 0x80, high = 0xbf; /* bounds of the second byte */
    size_t need = 2;

    *ret_len = 1;
    if (lead < 0x80)
        return UTF8_CHARACTER;
    if (lead < 0xc2 || lead > 0xf4)
        return UTF8_INVALID;
    if (lead >= 0xf0)
        need = 4;
    else if (lead >= 0xe0)
        need = 3;
    if (lead == 0xe0)
        low = 0xa0;
    else if (lead == 0xed)
        high = 0x9f;
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f;

    for (size_t i = 1; i < need; i++) {
        *ret_len = i;
        if (i == len)
            return UTF8_CUT;
        if (p[i] < low || p[i] > high)
            return UTF8_INVALID;
        low = 0x80;
        high = 0xbf;
    }
    *ret_len = need;
    return UTF8_CHARACTER;
}
