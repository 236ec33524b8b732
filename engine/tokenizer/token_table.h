/* The two look-ups that tokenising is made of: text to token id, and a pair of neighbouring ids to
 * what they merge into. Open addressing, filled at load, then read-only from any thread. */
#ifndef OVERFILL_ENGINE_TOKENIZER_TOKEN_TABLE_H
#define OVERFILL_ENGINE_TOKENIZER_TOKEN_TABLE_H

#include "engine/base/error.h"
#include "engine/tokenizer/vocab.h"

#include <stddef.h>

/* Ids by text, over a vocabulary's own strings. */
struct text_table {
    const struct vocab_string *texts; /* borrowed */
    int32_t *slots;                   /* ids, -1 empty; a power of two, at most half full */
    size_t mask;
};
int text_table_open(struct text_table *table, const struct vocab_string *texts, size_t capacity,
                    struct error *err);
void text_table_free(struct text_table *table);
/* Adds texts[id]; of equal texts the first added stays. At most `capacity` calls. */
void text_table_add(struct text_table *table, int32_t id);
int32_t text_table_find(const struct text_table *table, const char *text, size_t len); /* or -1 */

/* left and right, side by side, may become `merged`. The lowest order goes first. */
struct merge {
    int32_t left, right; /* ids; left -1: an empty slot */
    int32_t merged;
    uint32_t order;
};
struct merge_table {
    struct merge *slots;
    size_t mask;
    size_t n;
};
/* Grows as needed. Of equal pairs the first added stays. */
int merge_table_add(struct merge_table *table, struct merge merge, struct error *err);
void merge_table_free(struct merge_table *table);

static inline size_t merge_table_hash(int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9e3779b97f4a7c15u; /* 2^64 / golden ratio: the high half depends on every bit */
    return (size_t)(key ^ key >> 32);
}

/* NULL: the two do not merge. Ids of -1 never do. The table must not be empty (mask set). */
static inline const struct merge *merge_table_find(const struct merge_table *table, int32_t left,
                                                   int32_t right)
{
    if (left < 0 || right < 0 || table->n == 0)
        return NULL;
    for (size_t i = merge_table_hash(left, right) & table->mask;; i = (i + 1) & table->mask) {
        const struct merge *m = &table->slots[i];
        if (m->left < 0)
            return NULL;
        if (m->left == left && m->right == right)
            return m;
    }
}

#endif
