/* The trie of special tokens; a node's children are in one hash table for all nodes. See special.h.
 */
#include "engine/tokenizer/special.h"

#include "engine/base/mem.h"

static int add_node(struct special_tokens *specials, struct error *err)
{
    if (specials->n_nodes == specials->cap_nodes) {
        size_t cap = specials->cap_nodes ? 2 * specials->cap_nodes : 256;
        struct special_node *nodes = mem_realloc(specials->nodes, cap, sizeof(*nodes));
        if (!nodes)
            return error_memory(err, "special tokens", cap * sizeof(*nodes));
        specials->nodes = nodes;
        specials->cap_nodes = cap;
    }
    specials->nodes[specials->n_nodes++] = (struct special_node){.token = -1};
    return 0;
}

int special_add(struct special_tokens *specials, struct vocab_string text, int32_t token,
                bool control, struct error *err)
{
    int32_t node = 0;
    int rc = specials->n_nodes ? 0 : add_node(specials, err);

    for (uint32_t i = 0; i < text.len && rc == 0; i++) {
        int32_t byte = (unsigned char)text.data[i];
        const struct merge *edge = merge_table_find(&specials->children, node, byte);
        if (!edge) {
            rc = add_node(specials, err);
            int32_t child = (int32_t)specials->n_nodes - 1;
            if (rc == 0)
                rc = merge_table_add(&specials->children,
                                     (struct merge){.left = node, .right = byte, .merged = child},
                                     err);
            node = child;
        } else {
            node = edge->merged;
        }
    }
    if (rc || text.len == 0)
        return rc;
    specials->first[(unsigned char)text.data[0]] = true;
    if (specials->nodes[node].token < 0) /* of equal texts the first stays */
        specials->nodes[node] = (struct special_node){.token = token, .control = control};
    return 0;
}

void special_free(struct special_tokens *specials)
{
    mem_free(specials->nodes);
    merge_table_free(&specials->children);
    *specials = (struct special_tokens){0};
}

int32_t special_match(const struct special_tokens *specials, const char *text, size_t len,
                      size_t control_len, size_t *ret_len)
{
    int32_t best = -1, node = 0;

    if (!specials->first[(unsigned char)text[0]])
        return -1;
    for (size_t i = 0; i < len; i++) {
        const struct merge *edge =
            merge_table_find(&specials->children, node, (unsigned char)text[i]);
        if (!edge)
            break;
        node = edge->merged;
        const struct special_node *found = &specials->nodes[node];
        if (found->token >= 0 && (!found->control || i < control_len)) {
            best = found->token;
            *ret_len = i + 1;
        }
    }
    return best;
}
