/* The prefix index: from token ids to the pages that hold the full model's K and V of them. A
 * page's hash goes on from its parent's, so one look-up a page walks down a prompt; ids and parent
 * are compared too, so a collision of hashes finds nothing wrong. See kv.h and kv_internal.h. */
#include "engine/base/hash.h"
#include "engine/kv/kv_internal.h"

#include <assert.h>
#include <string.h>

#define PAGE_IDS_BYTES (KERNEL_PAGE_TOKENS * sizeof(int32_t))
#define MOST_COMPARED 64 /* continuations that are looked at to say where a prompt differs */

static uint64_t hash_page(const struct kv_pool *pool, uint32_t parent, const int32_t *tokens)
{
    uint64_t start = parent == NO_PAGE ? HASH_START : pool->pages[parent].hash;
    return hash_bytes(start, tokens, PAGE_IDS_BYTES);
}

static uint32_t *bucket_of(struct kv_pool *pool, uint64_t hash)
{
    return &pool->buckets[(hash ^ hash >> 32) & pool->bucket_mask];
}

static uint32_t find_page(struct kv_pool *pool, uint32_t parent, const int32_t *tokens)
{
    uint64_t hash = hash_page(pool, parent, tokens);
    uint32_t page = *bucket_of(pool, hash);
    while (page != NO_PAGE) {
        const struct page *p = &pool->pages[page];
        if (p->hash == hash && p->parent == parent &&
            memcmp(p->tokens, tokens, PAGE_IDS_BYTES) == 0)
            return page;
        page = p->next_in_bucket;
    }
    return NO_PAGE;
}

static uint32_t *first_child_of(struct kv_pool *pool, uint32_t parent)
{
    return parent == NO_PAGE ? &pool->first_root : &pool->pages[parent].first_child;
}

static void add_page(struct kv_pool *pool, uint32_t page, uint32_t parent, const int32_t *tokens)
{
    struct page *p = &pool->pages[page];
    p->is_indexed = true;
    p->hash = hash_page(pool, parent, tokens);
    memcpy(p->tokens, tokens, PAGE_IDS_BYTES);

    uint32_t *bucket = bucket_of(pool, p->hash);
    p->next_in_bucket = *bucket;
    *bucket = page;

    uint32_t *first = first_child_of(pool, parent);
    p->parent = parent;
    p->first_child = p->previous_sibling = NO_PAGE;
    p->next_sibling = *first;
    if (*first != NO_PAGE)
        pool->pages[*first].previous_sibling = page;
    *first = page;
}

bool prefix_insert(struct kv_pool *pool, uint32_t page, uint32_t parent, const int32_t *tokens)
{
    if (find_page(pool, parent, tokens) != NO_PAGE)
        return false;
    add_page(pool, page, parent, tokens);
    return true;
}

void prefix_remove(struct kv_pool *pool, uint32_t page)
{
    struct page *p = &pool->pages[page];
    assert(p->is_indexed && p->first_child == NO_PAGE && p->n_refs == 0);
    uint32_t *at = bucket_of(pool, p->hash);
    while (*at != page)
        at = &pool->pages[*at].next_in_bucket;
    *at = p->next_in_bucket;

    if (p->previous_sibling == NO_PAGE)
        *first_child_of(pool, p->parent) = p->next_sibling;
    else
        pool->pages[p->previous_sibling].next_sibling = p->next_sibling;
    if (p->next_sibling != NO_PAGE)
        pool->pages[p->next_sibling].previous_sibling = p->previous_sibling;
    p->is_indexed = false;
}

static uint32_t n_equal(const int32_t *a, const int32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* How many of tokens[n] the nearest continuation of `parent` shares. */
static uint32_t nearest(struct kv_pool *pool, uint32_t parent, const int32_t *tokens, uint32_t n)
{
    uint32_t best = 0;
    uint32_t page = *first_child_of(pool, parent);
    n = n < KERNEL_PAGE_TOKENS ? n : KERNEL_PAGE_TOKENS;
    for (uint32_t i = 0; page != NO_PAGE && i < MOST_COMPARED; i++) {
        uint32_t same = n_equal(pool->pages[page].tokens, tokens, n);
        best = same > best ? same : best;
        page = pool->pages[page].next_sibling;
    }
    return best;
}

struct kv_match kv_prefix_find(struct kv_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                               struct kv_table *table)
{
    uint32_t i = table ? table->n_pages : 0;
    uint32_t parent = i ? table->pages[i - 1] : NO_PAGE;
    assert(!table || table->n_indexed == table->n_pages);

    pthread_mutex_lock(&pool->lock);
    while (n_tokens / KERNEL_PAGE_TOKENS > i) {
        uint32_t page = find_page(pool, parent, tokens + (size_t)i * KERNEL_PAGE_TOKENS);
        if (page == NO_PAGE)
            break;
        if (table) {
            assert(i < table->cap);
            page_ref(pool, page);
            table->pages[i] = page;
            table->n_pages = table->n_indexed = i + 1;
        }
        parent = page;
        i++;
    }
    struct kv_match match = {.n_tokens = i * KERNEL_PAGE_TOKENS};
    match.n_same = match.n_tokens +
                   (n_tokens > match.n_tokens
                        ? nearest(pool, parent, tokens + match.n_tokens, n_tokens - match.n_tokens)
                        : 0);
    pthread_mutex_unlock(&pool->lock);
    return match;
}

void kv_prefix_add(struct kv_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   struct kv_table *table)
{
    uint32_t n_full = n_tokens / KERNEL_PAGE_TOKENS;
    assert(n_full <= table->n_pages);
    if (table->n_indexed >= n_full)
        return;
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = table->n_indexed; i < n_full; i++) {
        const int32_t *ids = tokens + (size_t)i * KERNEL_PAGE_TOKENS;
        uint32_t parent = i ? table->pages[i - 1] : NO_PAGE;
        uint32_t known = find_page(pool, parent, ids);
        if (known == NO_PAGE) {
            add_page(pool, table->pages[i], parent, ids);
        } else {
            page_ref(pool, known);
            page_unref(pool, table->pages[i]);
            table->pages[i] = known;
        }
    }
    table->n_indexed = n_full;
    pthread_mutex_unlock(&pool->lock);
}
