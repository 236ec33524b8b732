/* SentencePiece BPE on vocabularies small enough to follow by hand. */
#include "engine/base/mem.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <string.h>

#define IDS(...)                                                                                   \
    (const int32_t[])                                                                              \
    {                                                                                              \
        __VA_ARGS__, -1                                                                            \
    }
#define SPACE "\xe2\x96\x81"

enum { UNK, BOS, EOS, BYTE_NL, BYTE_C3, BYTE_A9, S, A, B, C, AB, BC, SA, ABC, LT, BB };

static const struct token tokens[] = {
    [UNK] = {"<unk>", TOKEN_UNKNOWN},
    [BOS] = {"<s>", TOKEN_CONTROL},
    [EOS] = {"</s>", TOKEN_CONTROL},
    [BYTE_NL] = {"<0x0A>", TOKEN_BYTE},
    [BYTE_C3] = {"<0xC3>", TOKEN_BYTE},
    [BYTE_A9] = {"<0xA9>", TOKEN_BYTE},
    [S] = {SPACE, TOKEN_NORMAL, -100},
    [A] = {"a", TOKEN_NORMAL, -101},
    [B] = {"b", TOKEN_NORMAL, -102},
    [C] = {"c", TOKEN_NORMAL, -103},
    [AB] = {"ab", TOKEN_NORMAL, -2},
    [BC] = {"bc", TOKEN_NORMAL, -1},
    [SA] = {SPACE "a", TOKEN_NORMAL, -3},
    [ABC] = {"abc", TOKEN_NORMAL, -4},
    [LT] = {"<s", TOKEN_NORMAL, -5},
    [BB] = {"bb", TOKEN_NORMAL, -6},
    {NULL},
};

static void open_spm(struct vocab *vocab, struct tokenizer **tokenizer, bool space_prefix)
{
    make_vocab(vocab, VOCAB_SPM, "default", tokens, NULL);
    vocab->unk = UNK;
    vocab->bos = BOS;
    vocab->eos = EOS;
    vocab->add_bos = true;
    vocab->add_space_prefix = space_prefix;
    *tokenizer = open_tokenizer(vocab);
}

static void best_score_merges_first(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, false);
    assert_ids(t, "ab", 0, IDS(AB));
    assert_ids(t, "abc", 0, IDS(ABC)); /* bc, then a + bc */
    assert_ids(t, "abbc", 0, IDS(AB, BC));
    assert_ids(t, " a", 0, IDS(SA));
    close_vocab(&v, t);
}

static void equal_scores_merge_from_the_left(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, false);
    assert_ids(t, "bbb", 0, IDS(BB, B));
    tokenizer_close(t);
    v.score[BC] = v.score[AB];
    v.kind[ABC] = TOKEN_CONTROL;
    t = open_tokenizer(&v);
    assert_ids(t, "abc", 0, IDS(AB, C));
    close_vocab(&v, t);
}

/* Text may be cut at spaces only if no token goes on over one. */
static void tokens_with_spaces_inside_are_found(void **state)
{
    static const struct token with_inner[] = {
        {SPACE}, {"a"}, {"b"}, {"a" SPACE, 0, 1}, {"a" SPACE "b", 0, 1}, {NULL}};
    struct vocab v;
    make_vocab(&v, VOCAB_SPM, "default", with_inner, NULL);
    struct tokenizer *t = open_tokenizer(&v);
    assert_ids(t, "ba b", 0, IDS(2, 4));
    close_vocab(&v, t);
}

static void space_prefix_stands_before_the_text(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, true);
    assert_ids(t, "a", 0, IDS(SA));
    assert_ids(t, "ab", 0, IDS(S, AB));
    assert_ids(t, "", 0, (const int32_t[]){-1});
    assert_ids(t, "", TOKENIZER_ADD_SPECIAL, IDS(BOS));
    assert_ids(t, "a", TOKENIZER_ADD_SPECIAL, IDS(BOS, SA));
    close_vocab(&v, t);
}

static void space_prefix_comes_again_after_special_tokens(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, true);
    assert_ids(t, "a</s>a", TOKENIZER_PARSE_SPECIAL, IDS(SA, EOS, SA));
    close_vocab(&v, t);
}

static void text_without_token_goes_byte_by_byte(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, false);
    assert_ids(t, "a\xc3\xa9", 0, IDS(A, BYTE_C3, BYTE_A9));
    assert_ids(t, "\xc3", 0, IDS(BYTE_C3)); /* not UTF-8 */
    assert_ids(t,
               "\xa9\xc3"
               "a",
               0, IDS(BYTE_A9, BYTE_C3, A));
    assert_ids(t, "ax\n", 0, IDS(A, UNK, BYTE_NL)); /* no byte token for x */
    close_vocab(&v, t);
}

static void names_of_bytes_and_controls_are_plain_text(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, false);
    assert_ids(t, "<s>", TOKENIZER_PARSE_SPECIAL, IDS(BOS));
    /* neither "<", "s" nor ">" is a token here, "<s" is: no merge may lead to <s> */
    assert_ids(t, "<s>", 0, IDS(UNK, UNK, UNK));
    assert_ids(t, "<0x0A>", 0, IDS(UNK, UNK, UNK, UNK, UNK, UNK));
    close_vocab(&v, t);
}

static void pieces_have_spaces_and_bytes(void **state)
{
    struct vocab v;
    struct tokenizer *t;
    size_t len;
    open_spm(&v, &t, true);
    assert_memory_equal(tokenizer_piece(t, SA, &len), " a", 2);
    assert_int_equal(len, 2);
    assert_memory_equal(tokenizer_piece(t, BYTE_NL, &len), "\n", 1);
    assert_int_equal(len, 1);
    assert_memory_equal(tokenizer_piece(t, BOS, &len), "<s>", 3);
    assert_true(tokenizer_is_control(t, UNK));
    close_vocab(&v, t);
}

/* A vocabulary's scores may be any floats: their order must be that of the numbers. */
static void scores_of_all_signs_are_ordered(void **state)
{
    static const float scores[] = {-1e30f, -1, -1e-30f, 0, 1e-30f, 1, 1e30f};
    struct vocab v;
    struct tokenizer *t;
    open_spm(&v, &t, false);
    for (size_t i = 0; i < sizeof(scores) / sizeof(scores[0]); i++) {
        for (size_t j = 0; j < sizeof(scores) / sizeof(scores[0]); j++) {
            if (i == j)
                continue;
            tokenizer_close(t);
            v.score[AB] = scores[i];
            v.score[BC] = scores[j];
            v.kind[ABC] = TOKEN_CONTROL;
            t = open_tokenizer(&v);
            if (i > j)
                assert_ids(t, "abc", 0, IDS(AB, C));
            else
                assert_ids(t, "abc", 0, IDS(A, BC));
        }
    }
    close_vocab(&v, t);
}

static void every_failed_allocation_is_an_error(void **state)
{
    struct vocab v;
    struct tokenizer *unused;
    open_spm(&v, &unused, true);
    for (unsigned long k = 1;; k++) {
        struct tokenizer *t = NULL;
        struct token_list list = {0};
        struct error err = {0};
        mem_fail_at(k);
        int rc = tokenizer_open(&v, &t, &err);
        if (rc == 0)
            rc = tokenizer_encode(t, "abc abc", 7, TOKENIZER_ADD_SPECIAL, &list, &err);
        bool failed = mem_count_allocations() >= k;
        mem_fail_at(0);
        tokenizer_close(t);
        token_list_free(&list);
        assert_int_equal(rc, failed ? -ERROR_MEMORY : 0);
        if (!failed)
            break;
    }
    close_vocab(&v, unused);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(best_score_merges_first),
        cmocka_unit_test(equal_scores_merge_from_the_left),
        cmocka_unit_test(tokens_with_spaces_inside_are_found),
        cmocka_unit_test(space_prefix_stands_before_the_text),
        cmocka_unit_test(space_prefix_comes_again_after_special_tokens),
        cmocka_unit_test(text_without_token_goes_byte_by_byte),
        cmocka_unit_test(names_of_bytes_and_controls_are_plain_text),
        cmocka_unit_test(pieces_have_spaces_and_bytes),
        cmocka_unit_test(scores_of_all_signs_are_ordered),
        cmocka_unit_test(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
