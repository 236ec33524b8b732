/* Arithmetic at full speed: as many independent sums as hide an instruction's latency, operands in
 * registers. An empty asm makes the compiler believe that operand and sum change, so that it
 * neither drops nor moves what a round computes. See loops.h. */
#include "engine/bench/loops.h"

#include "engine/base/system.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define N_SUMS 12

static bool always(void)
{
    return true;
}

/* What every machine has: four floats at a time, multiplied and added. */
typedef float four_floats __attribute__((vector_size(16)));

static void fp32_plain(size_t n_rounds)
{
    four_floats sum[N_SUMS] = {{0}};
    four_floats x = {1, 1, 1, 1};
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            sum[j] += x * x;
            __asm__ volatile("" : "+m"(x));
        }
    }
    __asm__ volatile("" : : "m"(sum));
}

static void int8_plain(size_t n_rounds)
{
    int32_t sum[N_SUMS] = {0};
    int8_t x[N_SUMS] = {1};
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++)
            sum[j] += x[j] * x[(j + 1) % N_SUMS];
        __asm__ volatile("" : "+m"(x));
    }
    __asm__ volatile("" : : "m"(sum));
}

#if defined(__x86_64__)
#define TARGET_AVX2 __attribute__((target("avx2,fma")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define TARGET_AVX_VNNI __attribute__((target("avx2,avxvnni")))
#define TARGET_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define UNKNOWN(x, sum) __asm__ volatile("" : "+v"(x), "+v"(sum))
#define UNKNOWN_AVX(x, sum) __asm__ volatile("" : "+x"(x), "+x"(sum))

/* clang 14 does not know these features' names. Leaf 7, subleaf 1, eax. */
static bool has_leaf_7_1(unsigned bit)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> bit & 1);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_avx_vnni(void)
{
    return has_avx2() && has_leaf_7_1(4);
}

static bool has_bf16(void)
{
    return has_avx512() && has_leaf_7_1(5);
}

/* 12 sums would leave no registers for what lies between. */
#define N_SUMS_AVX2 8

TARGET_AVX2 static void int8_avx2(size_t n_rounds)
{
    __m256i sum[N_SUMS_AVX2];
    __m256i w = _mm256_set1_epi8(1);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int j = 0; j < N_SUMS_AVX2; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS_AVX2; j++) {
            __m256i s =
                _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(w, ones), ones));
            UNKNOWN_AVX(w, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS_AVX2; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}

/* Eight products of nibbles fit 16 bits before they must be widened. */
TARGET_AVX2 static void int4_avx2(size_t n_rounds)
{
    __m256i sum[N_SUMS_AVX2];
    __m256i w = _mm256_set1_epi8(1);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int j = 0; j < N_SUMS_AVX2; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int g = 0; g < 8; g++) {
            for (int j = 0; j < N_SUMS_AVX2; j++) {
                __m256i s = _mm256_add_epi16(sum[j], _mm256_maddubs_epi16(w, ones));
                UNKNOWN_AVX(w, s);
                sum[j] = s;
            }
        }
        for (int j = 0; j < N_SUMS_AVX2; j++)
            sum[j] = _mm256_madd_epi16(sum[j], ones);
    }
    for (int j = 0; j < N_SUMS_AVX2; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}

TARGET_AVX2 static void int16_avx2(size_t n_rounds)
{
    __m256i sum[N_SUMS_AVX2];
    __m256i w = _mm256_set1_epi16(1);
    for (int j = 0; j < N_SUMS_AVX2; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS_AVX2; j++) {
            __m256i s = _mm256_add_epi32(sum[j], _mm256_madd_epi16(w, w));
            UNKNOWN_AVX(w, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS_AVX2; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}

TARGET_AVX_VNNI static void int8_avx_vnni(size_t n_rounds)
{
    __m256i sum[N_SUMS];
    __m256i w = _mm256_set1_epi8(1);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m256i s = _mm256_dpbusd_avx_epi32(sum[j], w, w);
            UNKNOWN_AVX(w, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}

TARGET_VNNI static void int8_vnni(size_t n_rounds)
{
    __m512i sum[N_SUMS];
    __m512i w = _mm512_set1_epi8(1);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m512i s = _mm512_dpbusd_epi32(sum[j], w, w);
            UNKNOWN(w, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "v"(sum[j]));
}

TARGET_VNNI static void int16_vnni(size_t n_rounds)
{
    __m512i sum[N_SUMS];
    __m512i w = _mm512_set1_epi16(1);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m512i s = _mm512_dpwssd_epi32(sum[j], w, w);
            UNKNOWN(w, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "v"(sum[j]));
}

TARGET_AVX2 static void fp32_avx2(size_t n_rounds)
{
    __m256 sum[N_SUMS];
    __m256 x = _mm256_set1_ps(0.5f);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm256_setzero_ps();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m256 s = _mm256_fmadd_ps(x, x, sum[j]);
            UNKNOWN_AVX(x, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}

TARGET_AVX512 static void fp32_avx512(size_t n_rounds)
{
    __m512 sum[N_SUMS];
    __m512 x = _mm512_set1_ps(0.5f);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm512_setzero_ps();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m512 s = _mm512_fmadd_ps(x, x, sum[j]);
            UNKNOWN(x, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "v"(sum[j]));
}

TARGET_BF16 static void bf16_avx512(size_t n_rounds)
{
    __m512 sum[N_SUMS];
    __m512i bits = _mm512_set1_epi16(0x3f00);
    for (int j = 0; j < N_SUMS; j++)
        sum[j] = _mm512_setzero_ps();
    for (size_t i = 0; i < n_rounds; i++) {
        for (int j = 0; j < N_SUMS; j++) {
            __m512 s = _mm512_dpbf16_ps(sum[j], (__m512bh)bits, (__m512bh)bits);
            UNKNOWN(bits, s);
            sum[j] = s;
        }
    }
    for (int j = 0; j < N_SUMS; j++)
        __asm__ volatile("" : : "v"(sum[j]));
}

#if defined(HAVE_AMX)
#define TARGET_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))
#define N_SUMS_AMX 4
/* Products of full tiles: 16 x 16 sums, 64 bytes of each row and of each column. */
#define AMX_OPS(elements) (2.0 * 16 * 16 * (elements)*N_SUMS_AMX)

static bool has_amx_bf16(void)
{
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return system_allows_amx() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}

/* All eight tiles full, of zeros: sums 0..3, operands 4..7. */
TARGET_AMX static void open_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t n_rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.n_rows[i] = 16;
    }
    /* gcc believes that only the first bytes are read */
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}

TARGET_AMX static void int8_amx(size_t n_rounds)
{
    open_tiles();
    for (size_t i = 0; i < n_rounds; i++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
}

TARGET_AMX static void bf16_amx(size_t n_rounds)
{
    open_tiles();
    for (size_t i = 0; i < n_rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}
#endif

TARGET_AVX2 static void read_avx2(const void *p, size_t bytes)
{
    const __m256i *v = p;
    __m256i sum[8];
    for (int j = 0; j < 8; j++)
        sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < bytes / 256; i++, v += 8)
        for (int j = 0; j < 8; j++)
            sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(v + j));
    for (int j = 0; j < 8; j++)
        __asm__ volatile("" : : "x"(sum[j]));
}
#endif

static void read_plain(const void *p, size_t bytes)
{
    const uint64_t *words = p;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < bytes / 64; i++)
        for (int j = 0; j < 8; j++)
            sum[j] += words[i * 8 + (size_t)j];
    __asm__ volatile("" : : "m"(sum));
}

void loop_read(const void *p, size_t bytes)
{
#if defined(__x86_64__)
    if (has_avx2()) {
        read_avx2(p, bytes);
        return;
    }
#endif
    read_plain(p, bytes);
}

const struct loop LOOPS[] = {
    {LOOP_INT8, "plain C", always, int8_plain, 2.0 * N_SUMS},
    {LOOP_FP32, "plain C", always, fp32_plain, 2.0 * 4 * N_SUMS},
#if defined(__x86_64__)
    {LOOP_INT8, "vpmaddubsw+vpmaddwd", has_avx2, int8_avx2, 2.0 * 32 * N_SUMS_AVX2},
    {LOOP_INT4, "vpmaddubsw+vpaddw", has_avx2, int4_avx2, 2.0 * 32 * N_SUMS_AVX2 * 8},
    {LOOP_INT16, "vpmaddwd+vpaddd", has_avx2, int16_avx2, 2.0 * 16 * N_SUMS_AVX2},
    {LOOP_INT8, "vpdpbusd ymm", has_avx_vnni, int8_avx_vnni, 2.0 * 32 * N_SUMS},
    {LOOP_INT8, "vpdpbusd zmm", has_vnni, int8_vnni, 2.0 * 64 * N_SUMS},
    {LOOP_INT16, "vpdpwssd zmm", has_vnni, int16_vnni, 2.0 * 32 * N_SUMS},
    {LOOP_FP32, "vfmadd ymm", has_avx2, fp32_avx2, 2.0 * 8 * N_SUMS},
    {LOOP_FP32, "vfmadd zmm", has_avx512, fp32_avx512, 2.0 * 16 * N_SUMS},
    {LOOP_BF16, "vdpbf16ps zmm", has_bf16, bf16_avx512, 2.0 * 32 * N_SUMS},
#if defined(HAVE_AMX)
    {LOOP_INT8, "tdpbssd", system_allows_amx, int8_amx, AMX_OPS(64)},
    {LOOP_BF16, "tdpbf16ps", has_amx_bf16, bf16_amx, AMX_OPS(32)},
#endif
#endif
};
const size_t N_LOOPS = sizeof(LOOPS) / sizeof(LOOPS[0]);
