/* Checked allocation with fault injection. See mem.h. */
#include "engine/base/mem.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

static atomic_ulong fail_at;
static atomic_ulong n_allocations;

void mem_fail_at(unsigned long k)
{
    atomic_store(&n_allocations, 0);
    atomic_store(&fail_at, k);
}

unsigned long mem_count_allocations(void)
{
    return atomic_load(&n_allocations);
}

static bool must_fail(void)
{
    unsigned long k = atomic_load_explicit(&fail_at, memory_order_relaxed);
    unsigned long n = atomic_fetch_add_explicit(&n_allocations, 1, memory_order_relaxed) + 1;
    return k && n == k;
}

bool mem_mul(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

bool mem_add(size_t a, size_t b, size_t *ret)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *ret = r;
    return true;
}

void *mem_alloc(size_t bytes)
{
    return must_fail() ? NULL : malloc(bytes ? bytes : 1);
}

void *mem_array(size_t n, size_t size)
{
    size_t bytes;
    return mem_mul(n, size, &bytes) ? mem_alloc(bytes) : NULL;
}

void *mem_calloc(size_t n, size_t size)
{
    size_t bytes;
    if (!mem_mul(n, size, &bytes) || must_fail())
        return NULL;
    return calloc(bytes ? bytes : 1, 1);
}

void *mem_realloc(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (!mem_mul(n, size, &bytes) || must_fail())
        return NULL;
    return realloc(p, bytes ? bytes : 1);
}

void *mem_alloc_aligned(size_t bytes)
{
    void *p;
    size_t align = bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : MEM_ALIGN;

    if (must_fail() || posix_memalign(&p, align, bytes ? bytes : 1) != 0)
        return NULL;
    if (align == HUGE_PAGE_BYTES)
        madvise(p, bytes, MADV_HUGEPAGE); /* a hint: without it the memory works, only slower */
    return p;
}

char *mem_strndup(const char *s, size_t bytes)
{
    char *copy = bytes < SIZE_MAX ? mem_alloc(bytes + 1) : NULL;
    if (copy) {
        memcpy(copy, s, bytes);
        copy[bytes] = '\0';
    }
    return copy;
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

void mem_free(void *p)
{
    free(p);
}
