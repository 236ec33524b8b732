/* Which kernels this CPU gets, and the tile sizes. See kernels.h. */
#include "engine/kernels/kernels.h"

#include "engine/base/system.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#define TILE_ALIGN 64

#if defined(__x86_64__)
/* clang 14 does not know this feature's name. */
static bool has_f16c(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

#if defined(HAVE_AVXVNNI)
/* Few compilers know this one's name. */
static bool has_avxvnni(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

#if defined(HAVE_AMX)
static bool has_amx_bf16(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22);
}
#endif
#endif

size_t kernels_available(const struct kernels *ret_tables[KERNELS_MOST])
{
    size_t n = 0;
    ret_tables[n++] = &KERNELS_SCALAR;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
        ret_tables[n++] = &KERNELS_AVX2;
#if defined(HAVE_AVXVNNI)
        if (has_avxvnni())
            ret_tables[n++] = &KERNELS_AVXVNNI;
#endif
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
            ret_tables[n++] = &KERNELS_AVX512;
#if defined(HAVE_AMX)
            if (system_allows_amx()) {
                ret_tables[n++] = &KERNELS_AMX;
                if (has_amx_bf16())
                    ret_tables[n++] = &KERNELS_AMX_BF16;
            }
#endif
        }
    }
#endif
    return n;
}

int kernels_select(const char *name, const struct kernels **ret_kernels, struct error *err)
{
    const struct kernels *tables[KERNELS_MOST];
    size_t n = kernels_available(tables);

    if (!name || !*name) {
        *ret_kernels = tables[n - 1];
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(tables[i]->name, name) == 0) {
            *ret_kernels = tables[i];
            return 0;
        }
    }
    return error_set(err, ERROR_INVALID,
                     "kernels \"%s\": this CPU runs %s; expected one of scalar, avx2, avxvnni, "
                     "avx512, amx, amx-bf16 up to that",
                     name, tables[n - 1]->name);
}

size_t kernel_tile_bytes(enum kernel_layout layout, size_t n_blocks)
{
    size_t bytes = n_blocks * kernel_block_bytes(layout);
    return (bytes + TILE_ALIGN - 1) / TILE_ALIGN * TILE_ALIGN;
}
