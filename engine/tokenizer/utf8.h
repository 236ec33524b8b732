/* One step over bytes that should be UTF-8. Not here: any table of characters. */
#ifndef OVERFILL_ENGINE_TOKENIZER_UTF8_H
#define OVERFILL_ENGINE_TOKENIZER_UTF8_H

#include <stddef.h>

enum utf8_step {
    UTF8_CHARACTER, /* a whole character: no surrogates, nothing overlong, at most U+10FFFF */
    UTF8_INVALID,   /* a maximal invalid subpart (Unicode 3.9, D93b): one U+FFFD stands for it */
    UTF8_CUT,       /* all `len` bytes are the beginning of a character */
};

#define UTF8_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* What stands at the start of s[len], len > 0; *ret_len its bytes, 1..4. */
enum utf8_step utf8_next(const char *s, size_t len, size_t *ret_len);

#endif
