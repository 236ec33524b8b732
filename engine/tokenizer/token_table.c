/* Text and merge tables. See token_table.h. */
#include "engine/tokenizer/token_table.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"

#include <assert.h>
#include <string.h>

#define MIN_SLOTS 64

static size_t slots_for(size_t n)
{
    size_t slots = MIN_SLOTS;
    while (slots < 2 * n)
        slots *= 2;
    return slots;
}

/* FNV-1a, with the high bits folded in: the table takes the low ones. */
static size_t hash_text(const char *text, size_t len)
{
    uint64_t h = hash_bytes(HASH_START, text, len);
    return (size_t)(h ^ h >> 32);
}

int text_table_open(struct text_table *table, const struct vocab_string *texts, size_t capacity,
                    struct error *err)
{
    size_t n = slots_for(capacity);
    int32_t *slots = mem_array(n, sizeof(*slots));

    if (!slots)
        return error_memory(err, "token table", n * sizeof(*slots));
    for (size_t i = 0; i < n; i++)
        slots[i] = -1;
    *table = (struct text_table){.texts = texts, .slots = slots, .mask = n - 1};
    return 0;
}

void text_table_free(struct text_table *table)
{
    mem_free(table->slots);
    *table = (struct text_table){0};
}

/* The slot of this text, or the empty one where it would go. */
static int32_t *find_slot(const struct text_table *table, const char *text, size_t len)
{
    for (size_t i = hash_text(text, len) & table->mask;; i = (i + 1) & table->mask) {
        int32_t id = table->slots[i];
        if (id < 0)
            return &table->slots[i];
        if (table->texts[id].len == len && memcmp(table->texts[id].data, text, len) == 0)
            return &table->slots[i];
    }
}

void text_table_add(struct text_table *table, int32_t id)
{
    int32_t *slot = find_slot(table, table->texts[id].data, table->texts[id].len);
    if (*slot < 0)
        *slot = id;
}

int32_t text_table_find(const struct text_table *table, const char *text, size_t len)
{
    return *find_slot(table, text, len);
}

static struct merge *find_merge_slot(const struct merge_table *table, int32_t left, int32_t right)
{
    assert(table->slots);
    size_t i = merge_table_hash(left, right) & table->mask;
    while (table->slots[i].left >= 0 &&
           (table->slots[i].left != left || table->slots[i].right != right))
        i = (i + 1) & table->mask;
    return &table->slots[i];
}

static int grow(struct merge_table *table, struct error *err)
{
    size_t n = table->slots ? 2 * (table->mask + 1) : MIN_SLOTS;
    struct merge_table next = {.mask = n - 1, .n = table->n};

    next.slots = mem_array(n, sizeof(*next.slots));
    if (!next.slots)
        return error_memory(err, "merge table", n * sizeof(*next.slots));
    for (size_t i = 0; i < n; i++)
        next.slots[i].left = -1;
    for (size_t i = 0; table->slots && i <= table->mask; i++) {
        const struct merge *m = &table->slots[i];
        if (m->left >= 0)
            *find_merge_slot(&next, m->left, m->right) = *m;
    }
    mem_free(table->slots);
    *table = next;
    return 0;
}

int merge_table_add(struct merge_table *table, struct merge merge, struct error *err)
{
    if (!table->slots || table->n > table->mask / 2) {
        int rc = grow(table, err);
        if (rc)
            return rc;
    }
    struct merge *slot = find_merge_slot(table, merge.left, merge.right);
    if (slot->left < 0) {
        *slot = merge;
        table->n++;
    }
    return 0;
}

void merge_table_free(struct merge_table *table)
{
    mem_free(table->slots);
    *table = (struct merge_table){0};
}
