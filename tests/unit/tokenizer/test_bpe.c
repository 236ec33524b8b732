/* Byte-level BPE and special tokens on vocabularies small enough to follow by hand. */
#include "engine/base/mem.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <string.h>

#define IDS(...)                                                                                   \
    (const int32_t[])                                                                              \
    {                                                                                              \
        __VA_ARGS__, -1                                                                            \
    }

/* ids: 256 ab, 257 abc, 258 bc, 259 <|end|>, 260 <tool>, 261 <tool>x, 262 <|start|> */
static const struct token extra[] = {{"ab"},
                                     {"abc"},
                                     {"bc"},
                                     {"<|end|>", TOKEN_CONTROL},
                                     {"<tool>", TOKEN_USER_DEFINED},
                                     {"<tool>x", TOKEN_USER_DEFINED},
                                     {"<|start|>", TOKEN_CONTROL},
                                     {NULL}};
static const char *const merges[] = {"b c", "a b", "ab c", "a bc", NULL};

static void with_vocab(struct vocab *vocab, struct tokenizer **tokenizer, const char *pre)
{
    make_byte_vocab(vocab, pre, extra, merges);
    *tokenizer = open_tokenizer(vocab);
}

static void lowest_rank_merges_first(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    with_vocab(&v, &t, "gpt-2");
    assert_ids(t, "ab", 0, IDS(256));
    assert_ids(t, "abc", 0, IDS(257)); /* bc first, then a + bc */
    assert_ids(t, "abab", 0, IDS(256, 256));
    assert_ids(t, "bbc", 0, IDS('b', 258));
    close_vocab(&v, t);
}

static void equal_ranks_merge_from_the_left(void **state)
{
    struct vocab v;
    static const struct token tokens[] = {{"dd"}, {NULL}};
    static const char *const list[] = {"d d", NULL};
    make_byte_vocab(&v, "gpt-2", tokens, list);
    struct tokenizer *t = open_tokenizer(&v);
    assert_ids(t, "ddddd", 0, IDS(256, 256, 'd'));
    close_vocab(&v, t);
}

static void merges_do_not_cross_words(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {{"1\xc4\xa0"}, {"12"}, {NULL}}; /* "1 ", "12" */
    static const char *const list[] = {"1 \xc4\xa0", "1 2", NULL};
    make_byte_vocab(&v, "gpt-2", tokens, list);
    t = open_tokenizer(&v);
    assert_ids(t, "1 2", 0, IDS('1', ' ', '2'));
    assert_ids(t, "12", 0, IDS(257));
    tokenizer_close(t);
    strcpy(v.pre, "smollm"); /* digits one by one */
    t = open_tokenizer(&v);
    assert_ids(t, "12", 0, IDS('1', '2'));
    close_vocab(&v, t);
}

static void llama3_takes_whole_words_without_merging(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {
        {"xyz"}, {"\xc4\xa0xyz"}, {NULL}}; /* no merge makes them */
    make_byte_vocab(&v, "llama-bpe", tokens, NULL);
    t = open_tokenizer(&v);
    assert_ids(t, "xyz xyz", 0, IDS(256, 257));
    tokenizer_close(t);
    strcpy(v.pre, "qwen2");
    t = open_tokenizer(&v);
    assert_ids(t, "xyz", 0, IDS('x', 'y', 'z'));
    close_vocab(&v, t);
}

static void every_known_pattern_keeps_all_bytes(void **state)
{
    static const char *const names[] = {"smollm",    "starcoder", "gpt-2",  "phi-2",
                                        "llama-bpe", "llama3",    "qwen2",  "qwen3",
                                        "falcon",    "default",   "tekken", "deepseek-r1-qwen"};
    static const char text[] =
        "I'll 123456 \t\n\n  x\r\ny \xc3\x84 \xe6\x97\xa5 \xd9\xa3 e\xcc\x81 "
        "\xf0\x9f\x98\x80!?\xc2\xa0 ";
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct vocab v;
        make_byte_vocab(&v, names[i], NULL, NULL);
        struct tokenizer *t = open_tokenizer(&v);
        struct token_list list = encode(t, text, strlen(text), 0);
        assert_pieces(t, &list, text, strlen(text));
        token_list_free(&list);
        close_vocab(&v, t);
    }
}

static void unknown_pre_tokenizer_is_named(void **state)
{
    struct vocab v;
    struct tokenizer *t = NULL;
    struct error err = {0};
    make_byte_vocab(&v, "no-such", NULL, NULL);
    assert_int_equal(tokenizer_open(&v, &t, &err), -ERROR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "no-such"));
    assert_non_null(strstr(err.message, "smollm"));
    assert_null(t);
    vocab_free(&v);
}

static void control_tokens_are_text_unless_asked_for(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    with_vocab(&v, &t, "gpt-2");
    assert_ids(t, "a<|end|>", TOKENIZER_PARSE_SPECIAL, IDS('a', 259));
    assert_ids(t, "a<|end|>", 0, IDS('a', '<', '|', 'e', 'n', 'd', '|', '>'));
    close_vocab(&v, t);
}

static void control_tokens_are_not_made_by_merging(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {{"ef"}, {"efg", TOKEN_CONTROL}, {NULL}};
    static const char *const list[] = {"e f", "ef g", NULL};
    make_byte_vocab(&v, "llama-bpe", tokens, list); /* which also takes whole words */
    t = open_tokenizer(&v);
    assert_ids(t, "efg", 0, IDS(256, 'g'));
    assert_ids(t, "efg", TOKENIZER_PARSE_SPECIAL, IDS(257));
    close_vocab(&v, t);
}

static void user_defined_tokens_match_always_and_longest(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    with_vocab(&v, &t, "gpt-2");
    assert_ids(t, "ab<tool>ab", 0, IDS(256, 260, 256));
    assert_ids(t, "<tool>x<tool>", 0, IDS(261, 260));
    assert_ids(t, "<tool", 0, IDS('<', 't', 'o', 'o', 'l'));
    close_vocab(&v, t);
}

static void bos_and_eos_come_as_the_vocabulary_asks(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    with_vocab(&v, &t, "gpt-2");
    v.bos = 262;
    v.eos = 259;
    assert_ids(t, "ab", TOKENIZER_ADD_SPECIAL, IDS(256));
    v.add_bos = true;
    assert_ids(t, "ab", TOKENIZER_ADD_SPECIAL, IDS(262, 256));
    assert_ids(t, "ab", 0, IDS(256));
    v.add_eos = true;
    assert_ids(t, "", TOKENIZER_ADD_SPECIAL, IDS(262, 259));
    close_vocab(&v, t);
}

static void ends_and_controls_are_known(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {{"<|im_end|>", TOKEN_USER_DEFINED},
                                          {"<|im_start|>", TOKEN_CONTROL},
                                          {"stop", TOKEN_NORMAL},
                                          {NULL}};
    make_byte_vocab(&v, "gpt-2", tokens, NULL);
    v.eos = 258;
    t = open_tokenizer(&v);
    assert_true(tokenizer_is_end(t, 256)); /* by its text, and so it is control as well */
    assert_true(tokenizer_is_control(t, 256));
    assert_ids(t, "<|im_end|>", 0, IDS('<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>'));
    assert_false(tokenizer_is_end(t, 257));
    assert_true(tokenizer_is_control(t, 257));
    assert_true(tokenizer_is_end(t, 258));
    assert_false(tokenizer_is_control(t, 258));
    assert_false(tokenizer_is_end(t, -1));
    assert_false(tokenizer_is_end(t, 259));
    assert_false(tokenizer_is_control(t, 1 << 30));
    close_vocab(&v, t);
}

static void pieces_are_bytes(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    size_t len = 0;
    with_vocab(&v, &t, "gpt-2");
    for (int32_t byte = 0; byte < 256; byte++) {
        const char *piece = tokenizer_piece(t, byte, &len);
        assert_int_equal(len, 1);
        assert_int_equal((unsigned char)piece[0], byte);
    }
    assert_memory_equal(tokenizer_piece(t, 259, &len), "<|end|>", 7);
    assert_int_equal(len, 7);
    assert_null(tokenizer_piece(t, -1, &len));
    assert_null(tokenizer_piece(t, 263, &len));
    close_vocab(&v, t);
}

static void bytes_that_the_vocabulary_lacks_are_dropped(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {{"a"}, {"b"}, {NULL}};
    make_vocab(&v, VOCAB_BPE, "gpt-2", tokens, NULL);
    t = open_tokenizer(&v);
    assert_ids(t, "axb", 0, IDS(0, 1));
    close_vocab(&v, t);
}

static void hash_tells_vocabularies_apart(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    with_vocab(&v, &t, "gpt-2");
    uint64_t first = tokenizer_hash(t);
    assert_true(first == tokenizer_hash(t));
    v.kind[256] = TOKEN_USER_DEFINED;
    assert_true(first != tokenizer_hash(t));
    v.kind[256] = TOKEN_NORMAL;
    v.n_merges--;
    assert_true(first != tokenizer_hash(t));
    v.n_merges++;
    assert_true(first == tokenizer_hash(t));
    v.text[256].data = "xb";
    assert_true(first != tokenizer_hash(t));
    close_vocab(&v, t);
}

static void bad_vocabularies_are_refused(void **state)
{
    struct vocab v;
    struct tokenizer *t = NULL;
    struct error err = {0};
    make_byte_vocab(&v, "gpt-2", NULL, NULL);
    v.bos = 256;
    assert_int_equal(tokenizer_open(&v, &t, &err), -ERROR_FORMAT);
    assert_non_null(strstr(err.message, "256"));
    v.bos = -1;
    v.n_tokens = 0;
    assert_int_equal(tokenizer_open(&v, &t, &err), -ERROR_FORMAT);
    vocab_free(&v);
}

/* Odd lists of merges are survived, their sound members used. */
static void broken_merges_are_left_out(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    static const struct token tokens[] = {{"ab"}, {NULL}};
    static const char *const list[] = {"", " ", "ab", "a  b", "zz zz", "a b", "b ", " b", NULL};
    make_byte_vocab(&v, "gpt-2", tokens, list);
    t = open_tokenizer(&v);
    assert_ids(t, "abb", 0, IDS(256, 'b'));
    close_vocab(&v, t);
}

static void every_failed_allocation_is_an_error(void **state)
{
    struct vocab v;
    make_byte_vocab(&v, "falcon", extra, merges);
    for (unsigned long k = 1;; k++) {
        struct tokenizer *t = NULL;
        struct token_list list = {0};
        struct error err = {0};
        mem_fail_at(k);
        int rc = tokenizer_open(&v, &t, &err);
        if (rc == 0)
            rc = tokenizer_encode(t, "abc <tool> 12345", 16, 0, &list, &err);
        bool failed = mem_count_allocations() >= k;
        mem_fail_at(0);
        tokenizer_close(t);
        token_list_free(&list);
        /* PCRE2 may do without: its generated code is optional */
        assert_true(rc == 0 || (failed && rc == -ERROR_MEMORY));
        if (!failed) {
            assert_int_equal(rc, 0);
            assert_true(k > 15);
            break;
        }
    }
    vocab_free(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lowest_rank_merges_first),
        cmocka_unit_test(equal_ranks_merge_from_the_left),
        cmocka_unit_test(merges_do_not_cross_words),
        cmocka_unit_test(llama3_takes_whole_words_without_merging),
        cmocka_unit_test(every_known_pattern_keeps_all_bytes),
        cmocka_unit_test(unknown_pre_tokenizer_is_named),
        cmocka_unit_test(control_tokens_are_text_unless_asked_for),
        cmocka_unit_test(control_tokens_are_not_made_by_merging),
        cmocka_unit_test(user_defined_tokens_match_always_and_longest),
        cmocka_unit_test(bos_and_eos_come_as_the_vocabulary_asks),
        cmocka_unit_test(ends_and_controls_are_known),
        cmocka_unit_test(pieces_are_bytes),
        cmocka_unit_test(bytes_that_the_vocabulary_lacks_are_dropped),
        cmocka_unit_test(hash_tells_vocabularies_apart),
        cmocka_unit_test(bad_vocabularies_are_refused),
        cmocka_unit_test(broken_merges_are_left_out),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
