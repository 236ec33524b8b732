/* Text that nobody would write: a tokenizer takes it, keeps its bytes and comes to an end. The
 * sizes are such that quadratic work would run into the test's time limit. */
#include "engine/base/mem.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <stdlib.h>
#include <string.h>

#define MEGABYTE ((size_t)1 << 20)

/* Merges of runs, so that long runs really merge. */
static const struct token extra[] = {{"aa"},
                                     {"aaaa"},
                                     {"aaaaaaaa"},
                                     {"11"},
                                     {"1111"},
                                     {"\xc4\xa0\xc4\xa0"},
                                     {"\xc4\xa0\xc4\xa0\xc4\xa0\xc4\xa0"},
                                     {"<|end|>", TOKEN_CONTROL},
                                     {"<u>", TOKEN_USER_DEFINED},
                                     {NULL}};
static const char *const merges[] = {"a a",
                                     "aa aa",
                                     "aaaa aaaa",
                                     "1 1",
                                     "11 11",
                                     "\xc4\xa0 \xc4\xa0",
                                     "\xc4\xa0\xc4\xa0 \xc4\xa0\xc4\xa0",
                                     NULL};
static const char *const pres[] = {"smollm", "llama-bpe", "tekken", "falcon", "default"};
#define N_PRES (sizeof(pres) / sizeof(pres[0]))

static char *repeat(const char *unit, size_t unit_len, size_t bytes, size_t *ret_len)
{
    char *text = malloc(bytes);
    assert_non_null(text);
    size_t n = bytes / unit_len;
    for (size_t i = 0; i < n; i++)
        memcpy(text + i * unit_len, unit, unit_len);
    *ret_len = n * unit_len;
    return text;
}

static void check_round_trip(const struct tokenizer *t, const char *text, size_t len)
{
    struct token_list list = encode(t, text, len, 0);
    assert_pieces(t, &list, text, len);
    token_list_free(&list);
}

static void check_repeated(const char *unit, size_t unit_len)
{
    for (size_t i = 0; i < N_PRES; i++) {
        struct vocab v;
        size_t len;
        make_byte_vocab(&v, pres[i], extra, merges);
        struct tokenizer *t = open_tokenizer(&v);
        char *text = repeat(unit, unit_len, MEGABYTE, &len);
        check_round_trip(t, text, len);
        free(text);
        tokenizer_close(t);
        vocab_free(&v);
    }
}

#define REPEATED(name, unit)                                                                       \
    static void name(void **state)                                                                 \
    {                                                                                              \
        check_repeated(unit, sizeof(unit) - 1);                                                    \
    }
REPEATED(megabyte_of_spaces, " ")
REPEATED(megabyte_of_a, "a")
REPEATED(megabyte_of_digits, "1")
REPEATED(megabyte_of_emoji, "\xf0\x9f\x98\x80")
REPEATED(megabyte_of_newlines, "\n")
REPEATED(megabyte_of_spaced_newlines, " \n")
REPEATED(megabyte_of_nul, "\0")
REPEATED(megabyte_of_invalid_bytes, "\xff")
REPEATED(megabyte_of_lone_lead_bytes, "\xf0\x9f")
REPEATED(megabyte_of_combining_marks, "\xcc\x81")
REPEATED(megabyte_of_capitals, "A")
REPEATED(megabyte_of_apostrophes, "'")
REPEATED(megabyte_of_half_special_tokens, "<|en")
REPEATED(megabyte_of_control_texts, "<|end|>")
REPEATED(megabyte_of_user_defined_tokens, "<u>")

static void spaces_before_a_letter(void **state)
{
    for (size_t i = 0; i < N_PRES; i++) {
        struct vocab v;
        size_t len;
        make_byte_vocab(&v, pres[i], extra, merges);
        struct tokenizer *t = open_tokenizer(&v);
        char *text = repeat(" ", 1, MEGABYTE, &len);
        text[len - 1] = 'x';
        check_round_trip(t, text, len);
        free(text);
        tokenizer_close(t);
        vocab_free(&v);
    }
}

static void sentencepiece_takes_a_megabyte(void **state)
{
    char path[4096];
    struct loaded l;
    size_t len;
    static const char *const units[] = {" ", "a", "\xf0\x9f\x98\x80", "\xff", "1", "ab "};

    load(find_shared("data/tokenizer/ggml-vocab-llama-spm.gguf", path, sizeof(path)), &l);
    l.vocab.add_space_prefix = false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        char *text = repeat(units[i], strlen(units[i]), MEGABYTE, &len);
        check_round_trip(l.tokenizer, text, len);
        free(text);
    }
    unload(&l);
}

static uint64_t random_state;

static uint32_t next_random(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

/* Mostly characters that patterns tell apart, some whole words, some raw bytes. */
static size_t random_text(char *text, size_t size)
{
    static const char *const parts[] = {" ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "'s",
                                        "'LL",
                                        "a",
                                        "Hello",
                                        "1",
                                        "23",
                                        "4567",
                                        "!",
                                        "...",
                                        "$+",
                                        "\xc2\xa0",
                                        "\xe3\x80\x80",
                                        "\xcc\x81",
                                        "\xe6\x97\xa5\xe6\x9c\xac",
                                        "\xd0\x96",
                                        "\xd9\xa3",
                                        "\xf0\x9f\x91\xa8\xe2\x80\x8d",
                                        "\xe2\x96\x81",
                                        "<|end|>",
                                        "<u>",
                                        "<s>",
                                        "_",
                                        "/"};
    size_t n = 0;
    while (n + 32 < size && next_random(40)) {
        if (next_random(12) == 0) {
            text[n++] = (char)next_random(256);
            continue;
        }
        const char *part = parts[next_random(sizeof(parts) / sizeof(parts[0]))];
        size_t len = strlen(part);
        memcpy(text + n, part, len);
        n += len;
    }
    return n;
}

static void random_texts_come_back(void **state)
{
    char text[2048];
    random_state = 1;
    for (size_t i = 0; i < N_PRES; i++) {
        struct vocab v;
        make_byte_vocab(&v, pres[i], extra, merges);
        struct tokenizer *t = open_tokenizer(&v);
        for (int round = 0; round < 2000; round++)
            check_round_trip(t, text, random_text(text, sizeof(text)));
        tokenizer_close(t);
        vocab_free(&v);
    }
}

/* Whatever a client writes, no control token comes out of it. */
static void check_no_control(const struct tokenizer *t)
{
    char text[2048];
    for (int round = 0; round < 2000; round++) {
        size_t len = random_text(text, sizeof(text));
        struct token_list list = encode(t, text, len, 0);
        for (size_t i = 0; i < list.n; i++)
            assert_false(tokenizer_is_control(t, list.ids[i]));
        token_list_free(&list);
    }
}

static void client_text_gives_no_control_tokens(void **state)
{
    struct vocab v;
    random_state = 2;
    make_byte_vocab(&v, "llama-bpe", extra, merges);
    struct tokenizer *t = open_tokenizer(&v);
    check_no_control(t);
    tokenizer_close(t);
    vocab_free(&v);
}

static void client_text_gives_no_control_tokens_in_sentencepiece(void **state)
{
    char path[4096];
    struct loaded l;
    random_state = 3;
    load(find_shared("data/tokenizer/ggml-vocab-llama-spm.gguf", path, sizeof(path)), &l);
    check_no_control(l.tokenizer);
    unload(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(megabyte_of_spaces),
        cmocka_unit_test(megabyte_of_a),
        cmocka_unit_test(megabyte_of_digits),
        cmocka_unit_test(megabyte_of_emoji),
        cmocka_unit_test(megabyte_of_newlines),
        cmocka_unit_test(megabyte_of_spaced_newlines),
        cmocka_unit_test(megabyte_of_nul),
        cmocka_unit_test(megabyte_of_invalid_bytes),
        cmocka_unit_test(megabyte_of_lone_lead_bytes),
        cmocka_unit_test(megabyte_of_combining_marks),
        cmocka_unit_test(megabyte_of_capitals),
        cmocka_unit_test(megabyte_of_apostrophes),
        cmocka_unit_test(megabyte_of_half_special_tokens),
        cmocka_unit_test(megabyte_of_control_texts),
        cmocka_unit_test(megabyte_of_user_defined_tokens),
        cmocka_unit_test(spaces_before_a_letter),
        cmocka_unit_test(sentencepiece_takes_a_megabyte),
        cmocka_unit_test(random_texts_come_back),
        cmocka_unit_test(client_text_gives_no_control_tokens),
        cmocka_unit_test(client_text_gives_no_control_tokens_in_sentencepiece),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
