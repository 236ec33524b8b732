/* Merging with a binary heap of candidate pairs. A candidate goes stale when one of its symbols has
 * merged with another neighbour; it is recognised when it comes out, not looked for. See merge.h.
 */
#include "engine/tokenizer/merge.h"

#include "engine/base/mem.h"

#include <stdbool.h>

void merge_workspace_free(struct merge_workspace *work)
{
    mem_free(work->symbols);
    mem_free(work->heap);
    *work = (struct merge_workspace){0};
}

int merge_add_symbol(struct merge_workspace *work, int32_t id, size_t start, struct error *err)
{
    if (work->n == work->cap) {
        size_t cap = work->cap ? 2 * work->cap : 64;
        struct symbol *symbols = mem_realloc(work->symbols, cap, sizeof(*symbols));
        if (!symbols)
            return error_memory(err, "symbols of a text", cap * sizeof(*symbols));
        work->symbols = symbols;
        work->cap = cap;
    }
    work->symbols[work->n++] = (struct symbol){.id = id, .start = (uint32_t)start};
    return 0;
}

static bool goes_before(struct candidate a, struct candidate b)
{
    return a.order < b.order || (a.order == b.order && a.left < b.left);
}

static int push(struct merge_workspace *work, struct candidate c, struct error *err)
{
    if (work->n_heap == work->cap_heap) {
        size_t cap = work->cap_heap ? 2 * work->cap_heap : 64;
        struct candidate *heap = mem_realloc(work->heap, cap, sizeof(*heap));
        if (!heap)
            return error_memory(err, "pairs of a text", cap * sizeof(*heap));
        work->heap = heap;
        work->cap_heap = cap;
    }
    size_t i = work->n_heap++;
    for (; i > 0 && goes_before(c, work->heap[(i - 1) / 2]); i = (i - 1) / 2)
        work->heap[i] = work->heap[(i - 1) / 2];
    work->heap[i] = c;
    return 0;
}

static struct candidate pop(struct merge_workspace *work)
{
    struct candidate top = work->heap[0], last = work->heap[--work->n_heap];
    size_t i = 0, n = work->n_heap;

    for (size_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && goes_before(work->heap[child + 1], work->heap[child]))
            child++;
        if (!goes_before(work->heap[child], last))
            break;
        work->heap[i] = work->heap[child];
        i = child;
    }
    work->heap[i] = last;
    return top;
}

/* The pair of `left` and its right neighbour, if it merges. */
static int consider(struct merge_workspace *work, const struct merge_table *table, uint32_t left,
                    struct error *err)
{
    if (left == MERGE_NONE || work->symbols[left].next == MERGE_NONE)
        return 0;
    const struct symbol *l = &work->symbols[left], *r = &work->symbols[l->next];
    const struct merge *m = merge_table_find(table, l->id, r->id);
    if (!m)
        return 0;
    return push(work, (struct candidate){m->order, left, (uint32_t)(m - table->slots)}, err);
}

static void join(struct merge_workspace *work, uint32_t left, uint32_t right, int32_t merged)
{
    struct symbol *l = &work->symbols[left], *r = &work->symbols[right];
    l->id = merged;
    l->next = r->next;
    if (r->next != MERGE_NONE)
        work->symbols[r->next].prev = left;
    r->id = -1; /* gone: no candidate with it on its left will match again */
}

static int seed(struct merge_workspace *work, const struct merge_table *table, struct error *err)
{
    uint32_t n = (uint32_t)work->n;
    int rc = 0;

    for (uint32_t i = 0; i < n; i++) {
        work->symbols[i].prev = i ? i - 1 : MERGE_NONE;
        work->symbols[i].next = i + 1 < n ? i + 1 : MERGE_NONE;
    }
    work->n_heap = 0;
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = consider(work, table, i, err);
    return rc;
}

int merge_run(struct merge_workspace *work, const struct merge_table *table, struct error *err)
{
    int rc = seed(work, table, err);

    while (rc == 0 && work->n_heap) {
        struct candidate c = pop(work);
        const struct merge *m = &table->slots[c.slot];
        uint32_t left = c.left, right = work->symbols[left].next;
        if (work->symbols[left].id != m->left || right == MERGE_NONE ||
            work->symbols[right].id != m->right)
            continue;
        join(work, left, right, m->merged);
        rc = consider(work, table, work->symbols[left].prev, err);
        if (rc == 0)
            rc = consider(work, table, left, err);
    }
    return rc;
}
