/* Which kernels this CPU gets, and the tile sizes. See kernels.h. */
#include "engine/kernels/kernels.h"

#include "engine/base/buf.h"
#include "engine/base/system.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#define TILE_ALIGN 64

#if defined(__x86_64__)
/* What clang 14 or gcc does not know by name, in a register of CPUID. */
enum cpuid_register { EAX, EBX, ECX, EDX };

static bool has_bit(unsigned leaf, unsigned subleaf, enum cpuid_register in, unsigned bit)
{
    unsigned registers[4];
    return __get_cpuid_count(leaf, subleaf, &registers[EAX], &registers[EBX], &registers[ECX],
                             &registers[EDX]) &&
           registers[in] >> bit & 1;
}

static bool has_avx2(void)
{
    bool f16c = has_bit(1, 0, ECX, 29);
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static size_t add_avx512(const struct kernels **ret_tables)
{
    size_t n = 0;
#if defined(HAVE_AVX512_BF16)
    bool bf16 = has_bit(7, 1, EAX, 5);
    /* Only on AMD's CPUs are products in bf16 faster than those of integers. */
    bool is_fast = __builtin_cpu_is("amd");
    if (bf16 && !is_fast)
        ret_tables[n++] = &KERNELS_AVX512_BF16;
    ret_tables[n++] = &KERNELS_AVX512;
    if (bf16 && is_fast)
        ret_tables[n++] = &KERNELS_AVX512_BF16;
#else
    ret_tables[n++] = &KERNELS_AVX512;
#endif
#if defined(HAVE_AMX)
    if (system_allows_amx()) {
        ret_tables[n++] = &KERNELS_AMX;
        if (has_bit(7, 0, EDX, 22))
            ret_tables[n++] = &KERNELS_AMX_BF16;
    }
#endif
    return n;
}
#endif

size_t kernels_available(const struct kernels *ret_tables[KERNELS_MOST])
{
    size_t n = 0;
    ret_tables[n++] = &KERNELS_SCALAR;
#if defined(__x86_64__)
    if (has_avx2()) {
        ret_tables[n++] = &KERNELS_AVX2;
#if defined(HAVE_AVXVNNI)
        if (has_bit(7, 1, EAX, 4))
            ret_tables[n++] = &KERNELS_AVXVNNI;
#endif
        if (has_avx512())
            n += add_avx512(ret_tables + n);
    }
#endif
    return n;
}

int kernels_select(const char *name, const struct kernels **ret_kernels, struct error *err)
{
    const struct kernels *tables[KERNELS_MOST];
    size_t n = kernels_available(tables);
    _cleanup_buf_ struct buf names = {0};

    if (!name || !*name) {
        *ret_kernels = tables[n - 1];
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            *ret_kernels = tables[i];
            return 0;
        }
        buf_printf(&names, "%s%s", i ? ", " : "", tables[i]->name);
    }
    return error_set(err, ERROR_INVALID, "kernels \"%s\": expected one of those this CPU runs: %s",
                     name, names.data ? names.data : "");
}

size_t kernel_tile_bytes(enum kernel_layout layout, size_t n_blocks)
{
    size_t bytes = n_blocks * kernel_block_bytes(layout);
    return (bytes + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
}
