/* Streams of tokens: whatever way a text is cut into tokens, what comes out is the same, whole
 * characters only, and ends before a stop string. */
#include "engine/tokenizer/text_stream.h"
#include "engine/tokenizer/utf8.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <stdlib.h>
#include <string.h>

#define MAX_STOPS 4

/* Tokens 0..255 are bytes; longer ones come from `extra`. */
static const struct token extra[] = {{"ab"},
                                     {"abc"},
                                     {"\xc3\xa2\xc4\xa4"}, /* e2 82 */
                                     {"\xc2\xac\xc3\xa2"}, /* ac e2 */
                                     {"\xc3\xb0\xc5\x81"}, /* f0 9f */
                                     {"<|end|>", TOKEN_CONTROL},
                                     {"b\xc3\xbf"}, /* b ff */
                                     {NULL}};
enum { AB = 256, ABC, E282, ACE2, F09F, END, BFF, N_TOKENS };

static struct vocab vocab;
static struct tokenizer *tokenizer;

static int setup(void **state)
{
    make_byte_vocab(&vocab, "gpt-2", extra, NULL);
    tokenizer = open_tokenizer(&vocab);
    return 0;
}

static int teardown(void **state)
{
    tokenizer_close(tokenizer);
    vocab_free(&vocab);
    return 0;
}

/* All output of the tokens; *ret_stopped: a stop string was found. */
static struct buf run(const int32_t *tokens, size_t n, const char *const *stops, bool *ret_stopped)
{
    struct stop_string list[MAX_STOPS];
    struct text_stream stream;
    struct buf out = {0};
    size_t n_stops = 0;

    for (; stops && stops[n_stops]; n_stops++)
        list[n_stops] = (struct stop_string){stops[n_stops], strlen(stops[n_stops])};
    text_stream_init(&stream, tokenizer, list, n_stops);
    *ret_stopped = false;
    for (size_t i = 0; i < n && !*ret_stopped; i++) {
        size_t before = out.len, step;
        *ret_stopped = text_stream_push(&stream, tokens[i], &out);
        for (size_t at = before; at < out.len; at += step) /* each delta is whole characters */
            assert_int_equal(utf8_next(out.data + at, out.len - at, &step), UTF8_CHARACTER);
    }
    text_stream_flush(&stream, &out);
    assert_false(out.failed || stream.held.failed);
    text_stream_free(&stream);
    buf_append(&out, "", 0);
    return out;
}

static void check(const int32_t *tokens, const char *const *stops, const char *expected,
                  bool expect_stop)
{
    bool stopped;
    size_t n = 0;
    while (tokens[n] >= 0)
        n++;
    struct buf out = run(tokens, n, stops, &stopped);
    assert_string_equal(out.data, expected);
    assert_int_equal(stopped, expect_stop);
    buf_free(&out);
}

#define IDS(...)                                                                                   \
    (const int32_t[])                                                                              \
    {                                                                                              \
        __VA_ARGS__, -1                                                                            \
    }
#define STOPS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static void text_comes_as_it_is(void **state)
{
    check(IDS('x', ABC, ' '), NULL, "xabc ", false);
    check(IDS(E282, 0xac), NULL, "\xe2\x82\xac", false);
    check(IDS(E282, ACE2, 0x82, 0xac), NULL, "\xe2\x82\xac\xe2\x82\xac", false);
}

static void characters_wait_for_their_last_byte(void **state)
{
    struct text_stream stream;
    struct buf out = {0};
    text_stream_init(&stream, tokenizer, NULL, 0);
    text_stream_push(&stream, F09F, &out);
    text_stream_push(&stream, 0x98, &out);
    assert_int_equal(out.len, 0);
    text_stream_push(&stream, 0x80, &out);
    assert_string_equal(out.data, "\xf0\x9f\x98\x80");
    text_stream_free(&stream);
    buf_free(&out);
}

static void each_invalid_subpart_is_one_replacement(void **state)
{
    check(IDS(0xff), NULL, UTF8_REPLACEMENT, false);
    check(IDS(E282, 'x'), NULL, UTF8_REPLACEMENT "x", false);
    check(IDS(E282), NULL, UTF8_REPLACEMENT, false); /* the end inside a character */
    check(IDS(E282, E282, 0xac), NULL, UTF8_REPLACEMENT "\xe2\x82\xac", false);
    check(IDS(0xc0, 0xaf), NULL, UTF8_REPLACEMENT UTF8_REPLACEMENT, false); /* overlong */
    check(IDS(0xed, 0xa0, 0x80), NULL, UTF8_REPLACEMENT UTF8_REPLACEMENT UTF8_REPLACEMENT,
          false); /* a surrogate */
    check(IDS(0xf4, 0x90, 'x'), NULL, UTF8_REPLACEMENT UTF8_REPLACEMENT "x", false);
    check(IDS(F09F, 0x98, F09F, 0x98, 0x80), NULL, UTF8_REPLACEMENT "\xf0\x9f\x98\x80", false);
}

static void stop_string_and_what_follows_are_not_in_the_text(void **state)
{
    check(IDS('x', ABC, 'y'), STOPS("b"), "xa", true);
    check(IDS('x', 'a', 'b', 'c'), STOPS("abc"), "x", true);
    check(IDS('a', 'a', 'b'), STOPS("ab"), "a", true);
    check(IDS('x'), STOPS("x"), "", true);
    check(IDS(E282, 0xac, 'z'), STOPS("\xe2\x82\xac"), "", true);
}

static void first_complete_stop_string_counts(void **state)
{
    check(IDS('a', 'b', 'c', 'd'), STOPS("bcd", "c"), "ab", true);
    check(IDS('x', ABC), STOPS("c", "bc"), "xa", true); /* complete together: the longest */
    check(IDS('x', ABC), STOPS("bc", "c"), "xa", true);
}

static void half_a_stop_string_is_text_in_the_end(void **state)
{
    check(IDS('x', 'a', 'b'), STOPS("abc"), "xab", false);
    check(IDS('a', 'b', 'a', 'b', 'x'), STOPS("abc"), "ababx", false);
}

static void text_is_held_only_while_it_may_stop(void **state)
{
    struct stop_string stop = {"abc", 3};
    struct text_stream stream;
    struct buf out = {0};
    text_stream_init(&stream, tokenizer, &stop, 1);
    text_stream_push(&stream, 'x', &out);
    assert_int_equal(out.len, 1);
    text_stream_push(&stream, AB, &out);
    assert_int_equal(out.len, 1);
    text_stream_push(&stream, 'x', &out);
    assert_string_equal(out.data, "xabx");
    text_stream_free(&stream);
    buf_free(&out);
}

static void control_tokens_and_unknown_ids_give_no_text(void **state)
{
    check(IDS('a', END, 'b'), NULL, "ab", false);
    check(IDS('a', 100000, 'b'), NULL, "ab", false);
    check(IDS('a', END, 'b'), STOPS("ab"), "", true);
}

static void nothing_comes_after_a_stop(void **state)
{
    struct stop_string stop = {"b", 1};
    struct text_stream stream;
    struct buf out = {0};
    text_stream_init(&stream, tokenizer, &stop, 1);
    assert_true(text_stream_push(&stream, AB, &out));
    assert_true(text_stream_push(&stream, 'x', &out));
    text_stream_flush(&stream, &out);
    assert_string_equal(out.data, "a");
    text_stream_free(&stream);
    buf_free(&out);
}

static void empty_stop_strings_stop_nothing(void **state)
{
    check(IDS('a', 'b'), STOPS(""), "ab", false);
}

/* The specification, on a whole string: characters first, then the stop string that ends first. */
static struct buf expected_of(const char *bytes, size_t len, const char *const *stops,
                              bool *ret_stopped)
{
    struct buf text = {0};
    size_t step, end = SIZE_MAX, start = SIZE_MAX;

    for (size_t at = 0; at < len; at += step) {
        bool whole = utf8_next(bytes + at, len - at, &step) == UTF8_CHARACTER;
        buf_append(&text, whole ? bytes + at : UTF8_REPLACEMENT, whole ? step : 3);
    }
    buf_append(&text, "", 0);
    for (size_t at = 0; at < text.len; at++) {
        for (size_t i = 0; stops[i]; i++) {
            size_t n = strlen(stops[i]);
            if (n == 0 || n > text.len - at || memcmp(text.data + at, stops[i], n) != 0)
                continue;
            if (at + n < end) {
                end = at + n;
                start = at;
            }
        }
    }
    *ret_stopped = start != SIZE_MAX;
    if (*ret_stopped) {
        text.len = start;
        text.data[start] = '\0';
    }
    return text;
}

static uint64_t random_state = 7;

static uint32_t next_random(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static int32_t random_token(void)
{
    static const unsigned char likely[] = {'a', 'b', 'c', 0xe2, 0x82, 0xac, 0xef, 0xbf, 0xbd};
    uint32_t kind = next_random(10);
    if (kind < 6)
        return likely[next_random(sizeof(likely))];
    return kind < 9 ? AB + (int32_t)next_random(N_TOKENS - AB) : (int32_t)next_random(256);
}

static void cutting_does_not_change_the_text(void **state)
{
    static const char *const stops[] = {"abc",
                                        "b",
                                        "ca",
                                        "aab",
                                        "\xe2\x82\xac",
                                        "c\xe2\x82\xac",
                                        "bbbb",
                                        "cabab",
                                        "",
                                        UTF8_REPLACEMENT,
                                        UTF8_REPLACEMENT "a"};
    size_t n_stopped = 0;

    for (int round = 0; round < 50000; round++) {
        const char *chosen[MAX_STOPS + 1] = {0};
        int32_t tokens[24];
        size_t n_tokens = next_random(24);
        struct buf bytes = {0};
        bool stopped, expect_stop;

        for (size_t i = 0, n = next_random(MAX_STOPS); i < n; i++)
            chosen[i] = stops[next_random(sizeof(stops) / sizeof(stops[0]))];
        for (size_t i = 0; i < n_tokens; i++) {
            size_t len;
            tokens[i] = random_token();
            const char *piece = tokenizer_piece(tokenizer, tokens[i], &len);
            if (!tokenizer_is_control(tokenizer, tokens[i]))
                buf_append(&bytes, piece, len);
        }
        struct buf expected = expected_of(bytes.data, bytes.len, chosen, &expect_stop);
        struct buf out = run(tokens, n_tokens, chosen, &stopped);
        assert_string_equal(out.data, expected.data);
        /* a stop that only the last flush completes ends the text, but no token said so */
        if (stopped)
            assert_true(expect_stop);
        n_stopped += stopped;
        buf_free(&expected);
        buf_free(&out);
        buf_free(&bytes);
    }
    assert_true(n_stopped > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_comes_as_it_is),
        cmocka_unit_test(characters_wait_for_their_last_byte),
        cmocka_unit_test(each_invalid_subpart_is_one_replacement),
        cmocka_unit_test(stop_string_and_what_follows_are_not_in_the_text),
        cmocka_unit_test(first_complete_stop_string_counts),
        cmocka_unit_test(half_a_stop_string_is_text_in_the_end),
        cmocka_unit_test(text_is_held_only_while_it_may_stop),
        cmocka_unit_test(control_tokens_and_unknown_ids_give_no_text),
        cmocka_unit_test(nothing_comes_after_a_stop),
        cmocka_unit_test(empty_stop_strings_stop_nothing),
        cmocka_unit_test(cutting_does_not_change_the_text),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
