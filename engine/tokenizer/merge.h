/* Merging neighbouring symbols, best pair first, until no pair merges: the one algorithm of
 * byte-pair encoding and of SentencePiece's BPE, which differ only in the table. O(n log n) in the
 * number of symbols, no recursion. A workspace belongs to one thread. */
#ifndef OVERFILL_ENGINE_TOKENIZER_MERGE_H
#define OVERFILL_ENGINE_TOKENIZER_MERGE_H

#include "engine/tokenizer/token_table.h"

struct symbol {
    int32_t id;          /* token, or -1: text without a token, which never merges */
    uint32_t start;      /* its bytes, as counted by the caller */
    uint32_t prev, next; /* neighbours, MERGE_NONE at the ends; set by merge_run */
};
#define MERGE_NONE UINT32_MAX

struct candidate {
    uint32_t order; /* of the merge; then the leftmost first */
    uint32_t left;  /* symbol */
    uint32_t slot;  /* of the merge in its table */
};

/* Zero-initialise; merge_workspace_free when done. */
struct merge_workspace {
    struct symbol *symbols;
    size_t n, cap;
    struct candidate *heap;
    size_t n_heap, cap_heap;
};
void merge_workspace_free(struct merge_workspace *work);
int merge_add_symbol(struct merge_workspace *work, int32_t id, size_t start, struct error *err);
/* Merges symbols[n]. What remains is the chain 0, symbols[0].next, ... A symbol's bytes go up to
 * the start of the one after it. */
int merge_run(struct merge_workspace *work, const struct merge_table *table, struct error *err);

#endif
