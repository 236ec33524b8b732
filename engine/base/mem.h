/* Allocation for the whole program. Every heap allocation of ours goes through these functions, so
 * that sizes are multiplied with a check and a test can make any single allocation fail.
 * All return NULL on failure (never abort); mem_free(NULL) is fine. Thread-safe. */
#ifndef OVERFILL_ENGINE_BASE_MEM_H
#define OVERFILL_ENGINE_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>

#define MEM_ALIGN 64 /* bytes; of mem_alloc_aligned: a cache line, an AVX-512 vector */

void *mem_alloc(size_t bytes);
void *mem_calloc(size_t n, size_t size);           /* zeroed, n * size checked */
void *mem_array(size_t n, size_t size);            /* not zeroed, n * size checked */
void *mem_realloc(void *p, size_t n, size_t size); /* n * size checked; p stays valid on NULL */
void *mem_alloc_aligned(size_t bytes);             /* MEM_ALIGN, not zeroed; huge pages if large */
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t bytes); /* copies exactly `bytes`, adds NUL */
void mem_free(void *p);                         /* for all of the above */

/* false on overflow; *ret untouched then. */
bool mem_mul(size_t a, size_t b, size_t *ret);
bool mem_add(size_t a, size_t b, size_t *ret);

/* Fault injection for tests: the k-th allocation from now (1 = the next) by any thread fails, once.
 * 0 turns it off. mem_count_allocations() counts since the last call of mem_fail_at. */
void mem_fail_at(unsigned long k);
unsigned long mem_count_allocations(void);

static inline void mem_cleanup(void *pp)
{
    mem_free(*(void **)pp);
}
#define _cleanup_mem_ __attribute__((cleanup(mem_cleanup)))

#endif
