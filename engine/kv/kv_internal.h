/* What kv.c (pages and tables) and prefix.c (the index) share. See kv.h. */
#ifndef OVERFILL_ENGINE_KV_KV_INTERNAL_H
#define OVERFILL_ENGINE_KV_KV_INTERNAL_H

#include "engine/kv/kv.h"

#include <pthread.h>

#define NO_PAGE UINT32_MAX

/* A page and its node in the index, which is a forest: a page's parent holds the 32 tokens before.
 * Whoever holds a page holds its ancestors, so a kept page has only kept descendants, and these
 * were let go before it: the page longest unused is always a leaf. */
struct page {
    uint32_t n_refs; /* tables that hold it */
    bool is_indexed;
    uint64_t hash;
    uint32_t parent, first_child; /* NO_PAGE if none */
    uint32_t next_sibling, previous_sibling;
    uint32_t next_in_bucket;
    uint32_t newer, older; /* in the list of kept pages, while n_refs is 0 */
    int32_t tokens[KERNEL_PAGE_TOKENS];
};

struct kv_pool {
    struct kv_layout layout;
    size_t page_bytes;
    size_t head_bytes; /* K or V of one layer and head */
    uint32_t n_pages;
    uint8_t *base;
    size_t mapped_bytes;
    pthread_mutex_t lock; /* guards everything below */
    struct page *pages;   /* [n_pages] */
    uint32_t *free_pages; /* [n_free], the last one is taken next: recently used memory is warm */
    uint32_t n_free;
    uint32_t n_kept, oldest, newest;
    uint32_t first_root; /* pages without a parent: beginnings of prompts */
    uint32_t *buckets;   /* [bucket_mask + 1] of the index */
    uint32_t bucket_mask;
    uint64_t n_evicted;
};

/* format.c: K or V of a layer and head in a page */
size_t kv_head_bytes(const struct kv_layout *layout);

/* All with the lock held. */
void page_ref(struct kv_pool *pool, uint32_t page);
void page_unref(struct kv_pool *pool, uint32_t page);
void page_keep_as_oldest(struct kv_pool *pool, uint32_t page);
void pages_forget_kept(struct kv_pool *pool); /* they are free then */
/* Puts a page into the index; false when it has an equal one. */
bool prefix_insert(struct kv_pool *pool, uint32_t page, uint32_t parent, const int32_t *tokens);
void prefix_remove(struct kv_pool *pool, uint32_t page); /* a leaf that no table holds */

#endif
