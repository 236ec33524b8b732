/* Keys and values in pages of KERNEL_PAGE_TOKENS tokens, shared by both stages and both models.
 * A page holds every layer's K and V of its tokens, for each layer and KV head
 *     K [head_dim][32] (transposed: attention adds along head_dim), then V [32][head_dim],
 * elements of the pool's type. A sequence owns a table of page numbers; handing a sequence from
 * prefill to decode moves the table, no bytes. Pages are reference counted: the answers of one
 * prompt share its full pages.
 *
 * The prefix index (prefix.c) finds pages by what they hold: a page of the full model's K and V is
 * told by its 32 token ids and the page before it. An indexed page that no table holds any more is
 * kept for prompts to come, and is given up, the longest unused first, when pages run out. So a
 * page is free, used (some table holds it) or kept.
 *
 * Threads: the pool's functions may be called from any thread (a mutex guards the lists, the counts
 * and the index). A page's bytes are written by whoever computes its sequence, and read by others
 * only after that sequence was handed over or the page was indexed; an indexed page is never
 * written. A table belongs to one thread. */
#ifndef OVERFILL_ENGINE_KV_KV_H
#define OVERFILL_ENGINE_KV_KV_H

#include "engine/base/error.h"
#include "engine/kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum kv_format {
    KV_PLAIN,  /* half or float */
    KV_BRAIN,  /* the upper half of a float, rounded */
    KV_BLOCKS, /* int8, and a half scale for each 32 of a token's values (those of Q8_0), after
                  them: of K [n_blocks][32 tokens], of V [32 tokens][n_blocks] */
};

struct kv_layout {
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t element_bytes; /* plain: 2 half, 4 float; brain: 2; blocks: 1 */
    enum kv_format format;
};

struct kv_pool;

struct kv_table {
    uint32_t *pages; /* page i holds tokens [32i, 32i + 32) */
    uint32_t n_pages;
    uint32_t n_indexed; /* the first ones, that are in the prefix index */
    uint32_t cap;
};

struct kv_counts {
    uint32_t n_used, n_kept, n_free;
    uint64_t n_evicted; /* kept pages given up, since open */
};

/* As many pages as fit into `bytes` (at least one, else ERROR_MEMORY). Address space is taken at
 * once, memory only as pages are used. */
int kv_pool_open(const struct kv_layout *layout, size_t bytes, struct kv_pool **ret_pool,
                 struct error *err);
void kv_pool_close(struct kv_pool *pool);
const struct kv_layout *kv_pool_layout(const struct kv_pool *pool);
uint32_t kv_pool_n_pages(const struct kv_pool *pool);
void kv_pool_get_counts(struct kv_pool *pool, struct kv_counts *ret_counts);
uint32_t kv_pool_n_used(struct kv_pool *pool);
size_t kv_page_bytes(const struct kv_layout *layout);
uint32_t kv_pages_for(uint32_t n_tokens); /* rounded up */

void *kv_page_keys(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head);
void *kv_page_values(const struct kv_pool *pool, uint32_t page, uint32_t layer, uint32_t head);

/* How a head's K and V of one token, [head_dim] floats, are written as token t of a page, and how a
 * page is read: to keys[head_dim][32] and values[32][head_dim] in scratch of that size, or where it
 * holds floats in place. */
void kv_store_key(const struct kv_pool *pool, const struct kernels *kernels, void *keys, uint32_t t,
                  const float *k);
void kv_store_value(const struct kv_pool *pool, const struct kernels *kernels, void *values,
                    uint32_t t, const float *v);
void kv_load(const struct kv_pool *pool, const struct kernels *kernels, const void *page_keys,
             const void *page_values, float *scratch_keys, float *scratch_values,
             const float **ret_keys, const float **ret_values);
/* Pages hold halves, which a kernel can read where they are. */
bool kv_is_half(const struct kv_pool *pool);

int kv_table_open(struct kv_table *ret_table, uint32_t max_tokens, struct error *err);
/* Makes room for n_tokens tokens in all, at most what kv_table_open was told. False when there are
 * no pages left; the table keeps those it got. */
bool kv_table_grow(struct kv_pool *pool, struct kv_table *table, uint32_t n_tokens);
/* Another sequence with the same first n_tokens tokens: full pages are shared, a part-filled one is
 * copied. dst is open and empty. False when there is no page for the copy; dst is empty then. */
bool kv_table_fork(struct kv_pool *pool, const struct kv_table *src, uint32_t n_tokens,
                   struct kv_table *dst);
/* Gives the pages back; the table is open and empty. */
void kv_table_clear(struct kv_pool *pool, struct kv_table *table);
/* Gives the pages back and frees the table. */
void kv_table_close(struct kv_pool *pool, struct kv_table *table);

/* What the index has of a prompt. */
struct kv_match {
    uint32_t n_tokens; /* in whole pages, from the first token on */
    uint32_t n_same;   /* >= n_tokens: where the prompt differs from the nearest one indexed */
};

/* Goes on with the pages that `table` holds, all of them indexed: takes those that the index has
 * for the first n_tokens tokens after them. `table` may be NULL: only looks. O(n_tokens). */
struct kv_match kv_prefix_find(struct kv_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                               struct kv_table *table);
/* Indexes the table's full pages of the first n_tokens tokens, all written by the full model. Where
 * the index has the same already, the table takes that page and gives its own back: their bytes are
 * equal. O(tokens not yet indexed). */
void kv_prefix_add(struct kv_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   struct kv_table *table);

/* The kept pages in a file, from one process to the next (state.c). Both calls want the pool for
 * themselves: before its threads run, and after they ended.
 *
 * Saving takes the pages used last, as many as max_bytes have room for, writes them beside `path`
 * and then moves them there, so that a full disk, or an end in the middle, leaves what was there.
 * With nothing to keep nothing is written. The file is the owner's alone (0600): it holds what
 * clients sent. */
int kv_state_save(struct kv_pool *pool, const char *path, const char *fingerprint, size_t max_bytes,
                  uint32_t *ret_n_pages, struct error *err);
/* Brings them back into an empty pool, as many as it has pages; no such file: 0 pages. The
 * fingerprint (up to KV_FINGERPRINT_MAX characters) stands for all that the bytes depend on beside
 * the layout. ERROR_FORMAT for a file of others or a broken one: the pool stays empty. */
int kv_state_load(struct kv_pool *pool, const char *path, const char *fingerprint,
                  uint32_t *ret_n_pages, struct error *err);
#define KV_FINGERPRINT_MAX 63

#endif
