/* KV pages and the tables that hold them. See kv.h; prefix.c has the index. */
#include "engine/base/mem.h"
#include "engine/kv/kv_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

size_t kv_page_bytes(const struct kv_layout *layout)
{
    return 2 * layout->n_layers * layout->n_kv_heads * kv_head_bytes(layout);
}

uint32_t kv_pages_for(uint32_t n_tokens)
{
    return n_tokens / KERNEL_PAGE_TOKENS + (n_tokens % KERNEL_PAGE_TOKENS != 0);
}

static int open_lists(struct kv_pool *pool, struct error *err)
{
    uint32_t n_buckets = 16;
    while (n_buckets < pool->n_pages && n_buckets < 1u << 30)
        n_buckets *= 2;
    pool->free_pages = mem_array(pool->n_pages, sizeof(uint32_t));
    pool->pages = mem_calloc(pool->n_pages, sizeof(*pool->pages));
    pool->buckets = mem_array(n_buckets, sizeof(uint32_t));
    if (!pool->free_pages || !pool->pages || !pool->buckets)
        return error_memory(err, "KV page lists", pool->n_pages * sizeof(*pool->pages));
    for (uint32_t i = 0; i < pool->n_pages; i++)
        pool->free_pages[i] = pool->n_pages - 1 - i;
    for (uint32_t i = 0; i < n_buckets; i++)
        pool->buckets[i] = NO_PAGE;
    pool->bucket_mask = n_buckets - 1;
    pool->n_free = pool->n_pages;
    pool->oldest = pool->newest = pool->first_root = NO_PAGE;
    return 0;
}

int kv_pool_open(const struct kv_layout *layout, size_t bytes, struct kv_pool **ret_pool,
                 struct error *err)
{
    struct kv_pool *pool = mem_calloc(1, sizeof(*pool));
    if (!pool)
        return error_memory(err, "KV pool", sizeof(*pool));
    pool->layout = *layout;
    pool->page_bytes = kv_page_bytes(layout);
    pool->head_bytes = kv_head_bytes(layout);
    pthread_mutex_init(&pool->lock, NULL);

    size_t n = bytes / pool->page_bytes;
    pool->n_pages = n < NO_PAGE ? (uint32_t)n : NO_PAGE - 1;
    int rc = pool->n_pages
                 ? open_lists(pool, err)
                 : error_set(err, ERROR_MEMORY,
                             "kv-memory: %zu bytes hold no KV page of this model, which takes %zu",
                             bytes, pool->page_bytes);
    if (rc == 0) {
        pool->mapped_bytes = pool->n_pages * pool->page_bytes;
        pool->base = mmap(NULL, pool->mapped_bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pool->base == MAP_FAILED) {
            pool->base = NULL;
            rc = error_set(err, ERROR_MEMORY, "kv-memory: mapping %zu bytes: %s",
                           pool->mapped_bytes, strerror(errno));
        } else {
            madvise(pool->base, pool->mapped_bytes, MADV_HUGEPAGE);
        }
    }
    if (rc) {
        kv_pool_close(pool);
        return rc;
    }
    *ret_pool = pool;
    return 0;
}

void kv_pool_close(struct kv_pool *pool)
{
    if (!pool)
        return;
    if (pool->base)
        munmap(pool->base, pool->mapped_bytes);
    pthread_mutex_destroy(&pool->lock);
    mem_free(pool->free_pages);
    mem_free(pool->pages);
    mem_free(pool->buckets);
    mem_free(pool);
}

const struct kv_layout *kv_pool_layout(const struct kv_pool *pool)
{
    return &pool->layout;
}

uint32_t kv_pool_n_pages(const struct kv_pool *pool)
{
    return pool->n_pages;
}

void kv_pool_get_counts(struct kv_pool *pool, struct kv_counts *ret_counts)
{
    pthread_mutex_lock(&pool->lock);
    *ret_counts = (struct kv_counts){
        .n_used = pool->n_pages - pool->n_free - pool->n_kept,
        .n_kept = pool->n_kept,
        .n_free = pool->n_free,
        .n_evicted = pool->n_evicted,
    };
    pthread_mutex_unlock(&pool->lock);
}

uint32_t kv_pool_n_used(struct kv_pool *pool)
{
    struct kv_counts counts;
    kv_pool_get_counts(pool, &counts);
    return counts.n_used;
}

void *kv_page_keys(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head)
{
    size_t i = ((size_t)layer * pool->layout.n_kv_heads + head) * 2;
    return pool->base + page * pool->page_bytes + i * pool->head_bytes;
}

void *kv_page_values(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head)
{
    return (uint8_t *)kv_page_keys(pool, page, layer, head) + pool->head_bytes;
}

static void keep(struct kv_pool *pool, uint32_t page)
{
    pool->pages[page].older = pool->newest;
    pool->pages[page].newer = NO_PAGE;
    if (pool->newest == NO_PAGE)
        pool->oldest = page;
    else
        pool->pages[pool->newest].newer = page;
    pool->newest = page;
    pool->n_kept++;
}

void page_keep_as_oldest(struct kv_pool *pool, uint32_t page)
{
    pool->pages[page].newer = pool->oldest;
    pool->pages[page].older = NO_PAGE;
    if (pool->oldest == NO_PAGE)
        pool->newest = page;
    else
        pool->pages[pool->oldest].older = page;
    pool->oldest = page;
    pool->n_kept++;
}

static void unkeep(struct kv_pool *pool, uint32_t page)
{
    const struct page *p = &pool->pages[page];
    if (p->older == NO_PAGE)
        pool->oldest = p->newer;
    else
        pool->pages[p->older].newer = p->newer;
    if (p->newer == NO_PAGE)
        pool->newest = p->older;
    else
        pool->pages[p->newer].older = p->older;
    pool->n_kept--;
}

void page_ref(struct kv_pool *pool, uint32_t page)
{
    if (pool->pages[page].n_refs++ == 0)
        unkeep(pool, page);
}

void page_unref(struct kv_pool *pool, uint32_t page)
{
    struct page *p = &pool->pages[page];
    assert(p->n_refs);
    if (--p->n_refs)
        return;
    if (p->is_indexed)
        keep(pool, page);
    else
        pool->free_pages[pool->n_free++] = page;
}

static uint32_t give_up_oldest(struct kv_pool *pool)
{
    uint32_t page = pool->oldest;
    unkeep(pool, page);
    prefix_remove(pool, page);
    return page;
}

void pages_forget_kept(struct kv_pool *pool)
{
    while (pool->n_kept)
        pool->free_pages[pool->n_free++] = give_up_oldest(pool);
}

static uint32_t take_page(struct kv_pool *pool)
{
    uint32_t page;
    if (pool->n_free) {
        page = pool->free_pages[--pool->n_free];
    } else if (pool->n_kept) {
        page = give_up_oldest(pool);
        pool->n_evicted++;
    } else {
        return NO_PAGE;
    }
    pool->pages[page].n_refs = 1;
    return page;
}

int kv_table_open(struct kv_table *ret_table, uint32_t max_tokens, struct error *err)
{
    uint32_t cap = kv_pages_for(max_tokens);
    uint32_t *pages = mem_array(cap, sizeof(uint32_t));
    if (!pages)
        return error_memory(err, "page table", cap * sizeof(uint32_t));
    *ret_table = (struct kv_table){.pages = pages, .cap = cap};
    return 0;
}

bool kv_table_grow(struct kv_pool *pool, struct kv_table *table, uint32_t n_tokens)
{
    uint32_t n = kv_pages_for(n_tokens);
    uint32_t page = 0;
    assert(n <= table->cap);
    if (table->n_pages >= n)
        return true;
    pthread_mutex_lock(&pool->lock);
    while (table->n_pages < n && (page = take_page(pool)) != NO_PAGE)
        table->pages[table->n_pages++] = page;
    pthread_mutex_unlock(&pool->lock);
    return page != NO_PAGE;
}

bool kv_table_fork(struct kv_pool *pool, const struct kv_table *src, uint32_t n_tokens,
                   struct kv_table *dst)
{
    uint32_t n_full = n_tokens / KERNEL_PAGE_TOKENS;
    assert(n_full <= dst->cap && dst->n_pages == 0);
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n_full; i++) {
        dst->pages[i] = src->pages[i];
        pool->pages[src->pages[i]].n_refs++; /* src holds it already */
    }
    pthread_mutex_unlock(&pool->lock);
    dst->n_pages = n_full;
    dst->n_indexed = src->n_indexed < n_full ? src->n_indexed : n_full;
    if (n_tokens % KERNEL_PAGE_TOKENS == 0)
        return true;
    if (!kv_table_grow(pool, dst, n_tokens)) {
        kv_table_clear(pool, dst);
        return false;
    }
    memcpy(pool->base + dst->pages[n_full] * pool->page_bytes,
           pool->base + src->pages[n_full] * pool->page_bytes, pool->page_bytes);
    return true;
}

/* The last page first, so that a prompt's end is given up before its beginning. */
void kv_table_clear(struct kv_pool *pool, struct kv_table *table)
{
    pthread_mutex_lock(&pool->lock);
    while (table->n_pages)
        page_unref(pool, table->pages[--table->n_pages]);
    pthread_mutex_unlock(&pool->lock);
    table->n_indexed = 0;
}

void kv_table_close(struct kv_pool *pool, struct kv_table *table)
{
    kv_table_clear(pool, table);
    mem_free(table->pages);
    *table = (struct kv_table){0};
}
