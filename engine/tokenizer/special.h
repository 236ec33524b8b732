/* Finding the tokens that are matched in text before anything else: control tokens (in templates
 * only) and user-defined ones. A trie over their bytes; immutable, any thread. */
#ifndef OVERFILL_ENGINE_TOKENIZER_SPECIAL_H
#define OVERFILL_ENGINE_TOKENIZER_SPECIAL_H

#include "engine/tokenizer/token_table.h"

#include <stdbool.h>

/* Zero-initialise; special_free when done. */
struct special_tokens {
    struct special_node {
        int32_t token; /* that ends here, or -1 */
        bool control;
    } * nodes; /* nodes[0] is the root */
    size_t n_nodes, cap_nodes;
    struct merge_table children; /* (node, byte) -> node */
    bool first[256];             /* bytes with which some token begins */
};
int special_add(struct special_tokens *specials, struct vocab_string text, int32_t token,
                bool control, struct error *err);
void special_free(struct special_tokens *specials);

/* The longest token that starts at text[0], or -1. Control tokens count if they end within the
 * first `control_len` bytes. */
int32_t special_match(const struct special_tokens *specials, const char *text, size_t len,
                      size_t control_len, size_t *ret_len);

#endif
