/* KV pages. See kv.h. */
#include "engine/kv/kv.h"

#include "engine/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

struct kv_pool {
    struct kv_layout layout;
    size_t page_bytes;
    size_t head_bytes; /* K or V of one layer and head */
    uint32_t n_pages;
    uint8_t *base;
    size_t mapped_bytes;
    pthread_mutex_t lock; /* guards everything below */
    uint32_t n_reserved;
    uint32_t n_free;
    uint32_t *free_pages; /* [n_free], the last one is taken next: recently used memory is warm */
    uint32_t *n_refs;     /* [n_pages] */
};

size_t kv_page_bytes(const struct kv_layout *layout)
{
    return (size_t)2 * layout->n_layers * layout->n_kv_heads * layout->head_dim *
           KERNEL_PAGE_TOKENS * layout->element_bytes;
}

uint32_t kv_pages_for(uint32_t n_tokens)
{
    return n_tokens / KERNEL_PAGE_TOKENS + (n_tokens % KERNEL_PAGE_TOKENS != 0);
}

static int open_lists(struct kv_pool *pool, struct error *err)
{
    pool->free_pages = mem_array(pool->n_pages, sizeof(uint32_t));
    pool->n_refs = mem_calloc(pool->n_pages, sizeof(uint32_t));
    if (!pool->free_pages || !pool->n_refs)
        return error_memory(err, "KV page lists", pool->n_pages * 8ull);
    for (uint32_t i = 0; i < pool->n_pages; i++)
        pool->free_pages[i] = pool->n_pages - 1 - i;
    pool->n_free = pool->n_pages;
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
    pool->head_bytes = (size_t)layout->head_dim * KERNEL_PAGE_TOKENS * layout->element_bytes;
    pthread_mutex_init(&pool->lock, NULL);

    size_t n = bytes / pool->page_bytes;
    pool->n_pages = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
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
    mem_free(pool->n_refs);
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

uint32_t kv_pool_n_used(struct kv_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    uint32_t n = pool->n_pages - pool->n_free;
    pthread_mutex_unlock(&pool->lock);
    return n;
}

bool kv_pool_reserve(struct kv_pool *pool, uint32_t n)
{
    pthread_mutex_lock(&pool->lock);
    bool ok = n <= pool->n_pages - pool->n_reserved;
    if (ok)
        pool->n_reserved += n;
    pthread_mutex_unlock(&pool->lock);
    return ok;
}

void kv_pool_unreserve(struct kv_pool *pool, uint32_t n)
{
    pthread_mutex_lock(&pool->lock);
    assert(n <= pool->n_reserved);
    pool->n_reserved -= n;
    pthread_mutex_unlock(&pool->lock);
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

static uint32_t take_page(struct kv_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    assert(pool->n_free); /* more pages taken than reserved */
    uint32_t page = pool->free_pages[--pool->n_free];
    pool->n_refs[page] = 1;
    pthread_mutex_unlock(&pool->lock);
    return page;
}

static void release_page(struct kv_pool *pool, uint32_t page)
{
    pthread_mutex_lock(&pool->lock);
    assert(pool->n_refs[page]);
    if (--pool->n_refs[page] == 0)
        pool->free_pages[pool->n_free++] = page;
    pthread_mutex_unlock(&pool->lock);
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

void kv_table_grow(struct kv_pool *pool, struct kv_table *table, uint32_t n_tokens)
{
    uint32_t n = kv_pages_for(n_tokens);
    assert(n <= table->cap);
    while (table->n_pages < n)
        table->pages[table->n_pages++] = take_page(pool);
}

void kv_table_fork(struct kv_pool *pool, const struct kv_table *src, uint32_t n_tokens,
                   struct kv_table *dst)
{
    uint32_t n_full = n_tokens / KERNEL_PAGE_TOKENS;
    assert(n_full <= dst->cap);
    pthread_mutex_lock(&pool->lock);
    for (uint32_t i = 0; i < n_full; i++) {
        dst->pages[i] = src->pages[i];
        pool->n_refs[src->pages[i]]++;
    }
    pthread_mutex_unlock(&pool->lock);
    dst->n_pages = n_full;
    if (n_tokens % KERNEL_PAGE_TOKENS) {
        kv_table_grow(pool, dst, n_tokens);
        memcpy(pool->base + dst->pages[n_full] * pool->page_bytes,
               pool->base + src->pages[n_full] * pool->page_bytes, pool->page_bytes);
    }
}

void kv_table_close(struct kv_pool *pool, struct kv_table *table)
{
    for (uint32_t i = 0; i < table->n_pages; i++)
        release_page(pool, table->pages[i]);
    mem_free(table->pages);
    *table = (struct kv_table){0};
}
