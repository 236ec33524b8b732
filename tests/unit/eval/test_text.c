/* Scores of one text against another. */
#include "engine/eval/eval_internal.h"
#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>

static void expect(double found, double expected)
{
    if (!(found > expected - 1e-9 && found < expected + 1e-9))
        fail_msg("%.9g, expected %.9g", found, expected);
}

static void rouge_l_is_the_f_measure_of_the_longest_common_subsequence(void **state)
{
    expect(text_rouge_l("the cat sat on the mat", "the cat sat on the mat"), 1);
    expect(text_rouge_l("The cat, sat!", "the CAT sat"), 1);
    /* common: police the gunman, in order 3 of 4 and 4 (Lin 2004, section 3.1) */
    expect(text_rouge_l("police kill the gunman", "police killed the gunman"), 0.75);
    expect(text_rouge_l("the gunman kill police", "police killed the gunman"), 0.5);
    expect(text_rouge_l("a b c d e f", "x b y d z"), 2.0 * 2 / (6 + 5));
    expect(text_rouge_l("one two", "three"), 0);
    expect(text_rouge_l("", "three"), 0);
    expect(text_rouge_l("...", ""), 1);
    expect(text_rouge_l("caf\xc3\xa9 au lait", "caf\xc3\xa9"), 0.5);
}

static void exact_match_forgives_case_punctuation_and_articles(void **state)
{
    expect(text_exact_match("The Eiffel Tower.", "eiffel tower"), 1);
    expect(text_exact_match("  don't\n", "dont"), 1);
    expect(text_exact_match("tower eiffel", "eiffel tower"), 0);
    expect(text_exact_match("eiffel", "eiffel tower"), 0);
    expect(text_exact_match("42", "42"), 1);
    expect(text_exact_match("the", ""), 1);
}

static void f1_counts_common_words_as_often_as_both_have_them(void **state)
{
    expect(text_f1("new york city", "york new city"), 1);
    expect(text_f1("yes yes yes", "yes"), 0.5);
    expect(text_f1("one two three", "two three four five"), 2.0 * 2 / 7);
    expect(text_f1("", "one"), 0);
    expect(text_f1("an", "the"), 1);
}

static void texts_longer_than_the_tables_are_cut(void **state)
{
    size_t n = 5000;
    char *text = malloc(2 * n + 1);
    for (size_t i = 0; i < n; i++)
        memcpy(text + 2 * i, "x ", 2);
    text[2 * n] = '\0';
    expect(text_rouge_l(text, text), 1);
    expect(text_exact_match(text, text), 1);
    expect(text_f1(text, "x"), 2.0 / 4097);
    free(text);
}

static void distinct_is_the_share_of_different_n_grams(void **state)
{
    const int32_t loop[] = {1, 2, 1, 2, 1, 2, 1};
    const int32_t all[] = {1, 2, 3, 4};
    expect(text_distinct(loop, 7, 3), 2.0 / 5);
    expect(text_distinct(loop, 7, 1), 2.0 / 7);
    expect(text_distinct(all, 4, 3), 1);
    expect(text_distinct(all, 2, 3), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rouge_l_is_the_f_measure_of_the_longest_common_subsequence),
        cmocka_unit_test(exact_match_forgives_case_punctuation_and_articles),
        cmocka_unit_test(f1_counts_common_words_as_often_as_both_have_them),
        cmocka_unit_test(texts_longer_than_the_tables_are_cut),
        cmocka_unit_test(distinct_is_the_share_of_different_n_grams),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
