/* The kernels for AVX2 + FMA + F16C, and with KERNELS_WITH_VNNI those that use AVX-VNNI as well: a
 * product and its sum are one instruction then. Same bits as scalar.c, which says what each
 * computes. */
#if defined(__x86_64__)
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"
#include "engine/kernels/x86_common.h"

/* Rows of one pass over a tile: four times two halves (8 outputs) of integer sums leave registers
 * for the operands. */
#define MAX_ROWS 4

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

/* Two activations, in every lane. */
INLINE __m256i broadcast2(const int16_t *q)
{
    int32_t two;
    memcpy(&two, q, sizeof(two));
    return _mm256_set1_epi32(two);
}

INLINE __m256 halves(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

INLINE void finish(const struct matmul *m, size_t row, size_t t, int h, __m256 acc)
{
    float *out =
        m->out + (row - m->row_begin) * m->out_stride + (t - m->tile_begin) * KERNEL_TILE + 8 * h;
    _mm256_storeu_ps(out, m->accumulate ? _mm256_add_ps(_mm256_loadu_ps(out), acc) : acc);
}

/* sum += the products of pairs. gcc would compute many products ahead of their sums, and put the
 * sums into memory or other registers meanwhile. */
INLINE __m256i add_products(__m256i sum, __m256i weights, __m256i pair)
{
#if defined(KERNELS_WITH_VNNI)
    return _mm256_dpwssd_avx_epi32(sum, weights, pair);
#else
    __m256i product = _mm256_madd_epi16(weights, pair);
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
    return sum;
#endif
}

/* sum[row][half] += weights[half] (pairs of 16 bits) times the row's pair of activations at x. */
INLINE void add_pairs(__m256i sum[][2], const __m256i weights[2], const int16_t *x, size_t stride,
                      const int n_rows)
{
    for (int r = 0; r < n_rows; r++) {
        __m256i pair = broadcast2(x + (size_t)r * stride);
        for (int h = 0; h < 2; h++)
            sum[r][h] = add_products(sum[r][h], weights[h], pair);
    }
}

/* The even bytes of int8 weights, or the odd ones, as 16 bits. */
INLINE __m256i q8_pairs(__m256i bytes, const int odd)
{
    return _mm256_srai_epi16(odd ? bytes : _mm256_slli_epi16(bytes, 8), 8);
}

/* Nibble i of each 16 bits. */
INLINE __m256i q4_pairs(__m256i packed, const int i)
{
    __m256i shifted = i ? _mm256_srli_epi16(packed, 4 * i) : packed;
    return i == 3 ? shifted : _mm256_and_si256(shifted, _mm256_set1_epi16(15));
}

/* Which pair of a block's activations meets nibble i of group g. */
INLINE size_t q4_pair_index(size_t g, int i)
{
    return 2 * g + (size_t)(i / 2 + i % 2 * 8);
}

/* The sums of block b. */
INLINE void add_block(__m256i sum[][2], const enum kernel_layout layout, const uint8_t *w,
                      const int16_t *x, size_t stride, const int n_rows)
{
    const bool q8 = layout == KERNEL_Q8;
    const size_t n_groups = q8 ? 8 : 4;
    X86_KEEP_LOOP
    for (size_t g = 0; g < n_groups; g++) {
        __m256i packed[2];
        __m256i pairs[2];
        for (int h = 0; h < 2; h++)
            packed[h] = load(w + g * 64 + h * 32);
        for (int i = 0; i < (q8 ? 2 : 4); i++) {
            for (int h = 0; h < 2; h++)
                pairs[h] = q8 ? q8_pairs(packed[h], i) : q4_pairs(packed[h], i);
            size_t pair = q8 ? 2 * g + (size_t)i : q4_pair_index(g, i);
            add_pairs(sum, pairs, x + pair * 2, stride, n_rows);
        }
    }
}

/* acc += the block's integer sums times their scales, and for Q4_MIN the block's minima. */
INLINE void scale_block(const struct matmul *m, const enum kernel_layout layout, const uint8_t *w,
                        size_t b, size_t row, __m256i sum[][2], __m256 acc[][2], const int n_rows)
{
    const uint16_t *wscale = (const uint16_t *)(const void *)(w + kernel_weight_bytes(layout));
    const uint16_t *wmin = wscale + KERNEL_TILE;

    for (int h = 0; h < 2; h++) {
        __m256 ws = halves(wscale + h * 8);
        __m256 wm = layout == KERNEL_Q4_MIN ? halves(wmin + h * 8) : ws;
        for (int r = 0; r < n_rows; r++) {
            size_t xb = (row + (size_t)r) * m->x->stride + b;
            __m256 xscale = _mm256_set1_ps(m->x->scale[xb]);
            acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][h]), _mm256_mul_ps(ws, xscale),
                                        acc[r][h]);
            if (layout == KERNEL_Q4_MIN) {
                __m256 xsum = _mm256_cvtepi32_ps(_mm256_set1_epi32(m->x->sum[xb]));
                acc[r][h] = _mm256_fmadd_ps(wm, _mm256_mul_ps(xscale, xsum), acc[r][h]);
            }
        }
    }
}

/* What the integer sums of an activation's block xb begin at. */
INLINE __m256i first_sum(const struct matmul *m, const enum kernel_layout layout, size_t xb)
{
    return layout == KERNEL_Q4 ? _mm256_set1_epi32(-8 * m->x->sum[xb]) : _mm256_setzero_si256();
}

INLINE void rows(const struct matmul *m, const enum kernel_layout layout, size_t t, size_t row,
                 const int n_rows)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK;
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    const int16_t *x = m->x->q + row * stride;
    __m256 acc[MAX_ROWS][2];

    for (int r = 0; r < n_rows; r++)
        acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (size_t b = 0; b < m->n_blocks; b++, w += kernel_block_bytes(layout)) {
        __m256i sum[MAX_ROWS][2];
        for (int r = 0; r < n_rows; r++)
            sum[r][0] = sum[r][1] = first_sum(m, layout, (row + (size_t)r) * m->x->stride + b);
        x86_prefetch_block(w, layout);
        add_block(sum, layout, w, x + b * KERNEL_BLOCK, stride, n_rows);
        scale_block(m, layout, w, b, row, sum, acc, n_rows);
    }
    for (int r = 0; r < n_rows; r++)
        for (int h = 0; h < 2; h++)
            finish(m, row + (size_t)r, t, h, acc[r][h]);
}

static void quantize(const float *x, size_t n, bool coarse, int16_t *q, float *scale, int32_t *sum)
{
    x86_quantize(x, n, coarse, q, scale, sum, false);
}

static void attend(const struct attend_page *a)
{
    if (a->is_half)
        x86_attend_all(a, true);
    else
        x86_attend_all(a, false);
}

X86_DEFINE_MATMUL(matmul_q8, KERNEL_Q8, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4, KERNEL_Q4, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4_min, KERNEL_Q4_MIN, MAX_ROWS)

#if defined(KERNELS_WITH_VNNI)
const struct kernels KERNELS_AVXVNNI =
    X86_TABLE("avxvnni", matmul_q8, matmul_q4, matmul_q4_min, NULL, false, NULL);
#else
const struct kernels KERNELS_AVX2 =
    X86_TABLE("avx2", matmul_q8, matmul_q4, matmul_q4_min, NULL, false, NULL);
#endif
#endif
