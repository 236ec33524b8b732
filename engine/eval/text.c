/* Scores of one text against another: ROUGE-L as Google's rouge_score has it without stemming,
 * exact match and F1 as SQuAD's script has them. Words are compared by their hashes. See
 * eval_internal.h. */
#include "engine/eval/eval_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS 4096 /* of a text; what comes after is not looked at */

struct words {
    uint64_t hash[MAX_WORDS];
    size_t n;
};

static bool is_letter(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
}

static bool is_space(unsigned char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static uint64_t add_letter(uint64_t hash, char c)
{
    char lower = c >= 'A' && c <= 'Z' ? (char)(c + 'a' - 'A') : c;
    return hash_bytes(hash, &lower, 1);
}

static uint64_t hash_of(const char *word)
{
    return hash_bytes(HASH_START, word, strlen(word));
}

static void add_word(struct words *words, uint64_t hash)
{
    if (words->n < MAX_WORDS)
        words->hash[words->n++] = hash;
}

/* Runs of letters and digits. */
static void split_plain(const char *text, struct words *words)
{
    words->n = 0;
    while (*text) {
        uint64_t hash = HASH_START;
        const char *begin = text;
        for (; is_letter((unsigned char)*text); text++)
            hash = add_letter(hash, *text);
        if (text > begin)
            add_word(words, hash);
        text += *text != '\0';
    }
}

/* Between white space, punctuation taken out, without articles. */
static void split_squad(const char *text, struct words *words)
{
    const uint64_t articles[] = {hash_of("a"), hash_of("an"), hash_of("the")};
    words->n = 0;
    while (*text) {
        uint64_t hash = HASH_START;
        for (; *text && !is_space((unsigned char)*text); text++)
            if (is_letter((unsigned char)*text))
                hash = add_letter(hash, *text);
        if (hash != HASH_START && hash != articles[0] && hash != articles[1] && hash != articles[2])
            add_word(words, hash);
        text += *text != '\0';
    }
}

/* 2 P R / (P + R) of n_common words. */
static double f_measure(size_t n_common, size_t n_text, size_t n_reference)
{
    if (!n_text || !n_reference)
        return n_text == n_reference;
    return 2.0 * (double)n_common / (double)(n_text + n_reference);
}

static size_t longest_common_subsequence(const struct words *a, const struct words *b)
{
    uint32_t row[MAX_WORDS + 1] = {0}; /* row[j]: of a's words so far and b's first j */
    for (size_t i = 0; i < a->n; i++) {
        uint32_t diagonal = 0;
        for (size_t j = 0; j < b->n; j++) {
            uint32_t above = row[j + 1];
            if (a->hash[i] == b->hash[j])
                row[j + 1] = diagonal + 1;
            else if (row[j] > above)
                row[j + 1] = row[j];
            diagonal = above;
        }
    }
    return row[b->n];
}

double text_rouge_l(const char *text, const char *reference)
{
    struct words a, b;
    split_plain(text, &a);
    split_plain(reference, &b);
    return f_measure(longest_common_subsequence(&a, &b), a.n, b.n);
}

double text_exact_match(const char *text, const char *reference)
{
    struct words a, b;
    split_squad(text, &a);
    split_squad(reference, &b);
    return a.n == b.n && memcmp(a.hash, b.hash, a.n * sizeof(a.hash[0])) == 0;
}

static int by_hash(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

double text_f1(const char *text, const char *reference)
{
    struct words a, b;
    size_t n_common = 0;
    split_squad(text, &a);
    split_squad(reference, &b);
    qsort(a.hash, a.n, sizeof(a.hash[0]), by_hash);
    qsort(b.hash, b.n, sizeof(b.hash[0]), by_hash);
    for (size_t i = 0, j = 0; i < a.n && j < b.n;) {
        if (a.hash[i] == b.hash[j]) {
            n_common++;
            i++;
            j++;
        } else if (a.hash[i] < b.hash[j]) {
            i++;
        } else {
            j++;
        }
    }
    return f_measure(n_common, a.n, b.n);
}

double text_distinct(const int32_t *tokens, size_t n_tokens, size_t n)
{
    size_t n_grams = n_tokens >= n ? n_tokens - n + 1 : 0;
    size_t n_different = 0;
    for (size_t i = 0; i < n_grams; i++) {
        size_t j = 0;
        while (j < i && memcmp(tokens + i, tokens + j, n * sizeof(*tokens)) != 0)
            j++;
        n_different += j == i;
    }
    return n_grams ? (double)n_different / (double)n_grams : 1;
}
