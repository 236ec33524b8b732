/* GPT-2's alphabet of bytes. See byte_alphabet.h. */
#include "engine/tokenizer/byte_alphabet.h"

#include <stdbool.h>

static bool stands_for_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
           (byte >= 0xae && byte <= 0xff);
}

/* The others, counted in the order of bytes: 00..20, 7f..a0, ad. */
static unsigned code_point(unsigned byte)
{
    if (stands_for_itself(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100 + byte;
    return byte == 0xad ? 0x143 : 0x121 + (byte - 0x7f);
}

size_t byte_alphabet_write(uint8_t byte, char *out)
{
    unsigned c = code_point(byte);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

int byte_alphabet_read(const char *s, size_t len)
{
    unsigned c = (unsigned char)s[0];
    if (len == 2)
        c = (c & 0x1f) << 6 | ((unsigned char)s[1] & 0x3f);
    else if (len != 1)
        return -1;
    if (c <= 0xff)
        return stands_for_itself(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7f);
    return c == 0x143 ? 0xad : -1;
}
