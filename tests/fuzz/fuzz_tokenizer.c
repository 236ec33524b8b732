/* Any text through both kinds of tokenizer: the pieces of its ids, one after the other, are the
 * text again. The first byte chooses the pre-tokeniser and the flags. */
#include "engine/tokenizer/tokenizer.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const char *const PRE[] = {"smollm", "gpt-2", "llama-bpe", "qwen2", "starcoder", "falcon"};
#define N_PRE (sizeof(PRE) / sizeof(PRE[0]))
#define MAX_TEXT 4096

static struct tokenizer *open_bpe(const char *pre)
{
    /* static: the tokenizers live as long as the process */
    static struct vocab vocabs[N_PRE];
    static size_t n;
    static const struct token EXTRA[] = {{"he", TOKEN_NORMAL, 0},
                                         {"ll", TOKEN_NORMAL, 0},
                                         {"hell", TOKEN_NORMAL, 0},
                                         {"\xc4\xa0h", TOKEN_NORMAL, 0},
                                         {"12", TOKEN_NORMAL, 0},
                                         {"\xc3\x83\xc2\xa9", TOKEN_NORMAL, 0},
                                         {"<|end|>", TOKEN_CONTROL, 0},
                                         {"<user>", TOKEN_USER_DEFINED, 0},
                                         {NULL, 0, 0}};
    static const char *const MERGES[] = {"h e", "l l", "he ll", "\xc4\xa0 h", "1 2", NULL};

    make_byte_vocab(&vocabs[n], pre, EXTRA, MERGES);
    return open_tokenizer(&vocabs[n++]);
}

static void check(const struct tokenizer *tokenizer, const char *text, size_t len, unsigned flags)
{
    struct token_list list = {0};
    struct error err;
    size_t at = 0;

    if (tokenizer_encode(tokenizer, text, len, flags, &list, &err) < 0)
        abort(); /* memory was there, and every text can be encoded */
    for (size_t i = 0; i < list.n; i++) {
        size_t n;
        const char *piece = tokenizer_piece(tokenizer, list.ids[i], &n);
        if (!piece || n > len - at || memcmp(piece, text + at, n) != 0)
            abort();
        if (!(flags & TOKENIZER_PARSE_SPECIAL) && tokenizer_is_control(tokenizer, list.ids[i]))
            abort(); /* a client's text became a control token */
        at += n;
    }
    if (at != len)
        abort();
    token_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct tokenizer *tokenizers[N_PRE];

    if (n == 0 || n > MAX_TEXT)
        return 0;
    size_t which = data[0] % N_PRE;
    if (!tokenizers[which])
        tokenizers[which] = open_bpe(PRE[which]);
    check(tokenizers[which], (const char *)data + 1, n - 1,
          data[0] & 0x80 ? TOKENIZER_PARSE_SPECIAL : 0);
    return 0;
}
