/* Keys and values in pages of KERNEL_PAGE_TOKENS tokens, shared by both stages and both models.
 * A page holds every layer's K and V of its tokens, for each layer and KV head
 *     K [head_dim][32] (transposed: attention adds along head_dim), then V [32][head_dim],
 * elements of the pool's type. A sequence owns a table of page numbers; handing a sequence from
 * prefill to decode moves the table, no bytes. Pages are reference counted: the answers of one
 * prompt share its full pages.
 *
 * Threads: the pool's functions may be called from any thread (a mutex guards the free list, the
 * counts and the reservations). A page's bytes are written by whoever computes its sequence, and
 * read by others only after that sequence was handed over. A table belongs to one thread. */
#ifndef OVERFILL_ENGINE_KV_KV_H
#define OVERFILL_ENGINE_KV_KV_H

#include "engine/base/error.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kv_layout {
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t element_bytes; /* 2: half, 4: float */
};

struct kv_pool;

struct kv_table {
    uint32_t *pages; /* page i holds tokens [32i, 32i + 32) */
    uint32_t n_pages;
    uint32_t cap;
};

/* As many pages as fit into `bytes` (at least one, else ERROR_MEMORY). Address space is taken at
 * once, memory only as pages are used. */
int kv_pool_open(const struct kv_layout *layout, size_t bytes, struct kv_pool **ret_pool,
                 struct error *err);
void kv_pool_close(struct kv_pool *pool);
const struct kv_layout *kv_pool_layout(const struct kv_pool *pool);
uint32_t kv_pool_n_pages(const struct kv_pool *pool);
uint32_t kv_pool_n_used(struct kv_pool *pool);
size_t kv_page_bytes(const struct kv_layout *layout);
uint32_t kv_pages_for(uint32_t n_tokens); /* rounded up */

/* Sets n pages aside, so that taking them later cannot fail; false if there are not that many. */
bool kv_pool_reserve(struct kv_pool *pool, uint32_t n);
void kv_pool_unreserve(struct kv_pool *pool, uint32_t n);

void *kv_page_keys(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head);
void *kv_page_values(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head);

/* Makes room for n_tokens tokens in all; the pages come from the caller's reservation. `table` must
 * have been given room for them by kv_table_open. */
void kv_table_grow(struct kv_pool *pool, struct kv_table *table, uint32_t n_tokens);
int kv_table_open(struct kv_table *ret_table, uint32_t max_tokens, struct error *err);
/* Another sequence with the same first n_tokens tokens: full pages are shared, a part-filled one is
 * copied. dst is open and empty. */
void kv_table_fork(struct kv_pool *pool, const struct kv_table *src, uint32_t n_tokens,
                   struct kv_table *dst);
/* Gives the pages back and frees the table. */
void kv_table_close(struct kv_pool *pool, struct kv_table *table);

#endif
