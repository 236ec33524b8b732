/* The kernels for AVX2 + FMA + F16C. Same bits as scalar.c, which says what each computes. */
#if defined(__x86_64__)
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"
#include "engine/kernels/x86_common.h"

/* Rows and halves (8 outputs) of a tile in one pass: as many as leave the integer sums of both
 * digits in registers, so four rows of one half, or up to two of both. The latter read the weights
 * from end to end once, as memory likes it. */
#define MAX_ROWS 4
#define MAX_SUMS 4 /* rows * halves */

/* Weights are asked for this far ahead when a pass does too little work to hide their way. */
#define PREFETCH_BYTES 4096

INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof(four));
    return _mm256_set1_epi32(four);
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

/* 255 * high + low, as float */
INLINE __m256 join(__m256i high, __m256i low)
{
    return _mm256_cvtepi32_ps(
        _mm256_add_epi32(_mm256_slli_epi32(high, 8), _mm256_sub_epi32(low, high)));
}

/* |w| as unsigned times the digit with w's sign: a pair's sum is at most 2 * 128 * 127 < 2^15, so
 * vpmaddubsw does not saturate. */
INLINE __m256i dot4_q8(__m256i magnitude, __m256i weight, const int8_t *q)
{
    __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(broadcast4(q), weight));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void q8_part(const struct matmul *m, size_t t, const int half, const int n_halves,
                    size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const int8_t *w = (const int8_t *)m->tiles + t * m->tile_bytes + half * 32;
    const uint16_t *wscale =
        (const uint16_t *)(const void *)(m->tiles + t * m->tile_bytes + n_blocks * 512) + half * 8;
    __m256 acc[MAX_SUMS];

    for (int i = 0; i < n_rows * n_halves; i++)
        acc[i] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i high[MAX_SUMS];
        __m256i low[MAX_SUMS];
        for (int i = 0; i < n_rows * n_halves; i++)
            high[i] = low[i] = _mm256_setzero_si256();
        for (int g = 0; g < 8; g++) {
            const int8_t *at = w + b * 512 + g * 64;
            if (n_halves == 2)
                _mm_prefetch(at + PREFETCH_BYTES, _MM_HINT_T0);
            for (int h = 0; h < n_halves; h++) {
                __m256i weight = load(at + h * 32);
                __m256i magnitude = _mm256_abs_epi8(weight);
                for (int r = 0; r < n_rows; r++) {
                    const int8_t *q =
                        m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                    int i = r * n_halves + h;
                    high[i] = _mm256_add_epi32(high[i], dot4_q8(magnitude, weight, q));
                    low[i] = _mm256_add_epi32(low[i], dot4_q8(magnitude, weight, q + KERNEL_BLOCK));
                }
            }
        }
        for (int r = 0; r < n_rows; r++) {
            __m256 xs = _mm256_set1_ps(m->x->scale[(row + (size_t)r) * stride + b]);
            for (int h = 0; h < n_halves; h++) {
                int i = r * n_halves + h;
                __m256 ws = halves(wscale + b * KERNEL_TILE + h * 8);
                acc[i] = _mm256_fmadd_ps(join(high[i], low[i]), _mm256_mul_ps(ws, xs), acc[i]);
            }
        }
    }
    for (int i = 0; i < n_rows * n_halves; i++)
        finish(m, row + (size_t)(i / n_halves), t, half + i % n_halves, acc[i]);
}

/* Nibbles are unsigned and small: eight pair sums of at most 2 * 15 * 127 fit 16 bits, so a whole
 * block is added before it is widened. */
INLINE __m256i add_pairs(__m256i sum, __m256i nibbles, const int8_t *q)
{
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, broadcast4(q)));
}

INLINE void q4_part(const struct matmul *m, size_t t, const int half, const int n_halves,
                    size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const uint8_t *w = m->tiles + t * m->tile_bytes + half * 32;
    const uint16_t *wscale =
        (const uint16_t *)(const void *)(m->tiles + t * m->tile_bytes + n_blocks * 256) + half * 8;
    const uint16_t *wmin = wscale + n_blocks * KERNEL_TILE;
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i low4 = _mm256_set1_epi8(15);
    __m256 acc[MAX_SUMS];

    for (int i = 0; i < n_rows * n_halves; i++)
        acc[i] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i high[MAX_SUMS];
        __m256i low[MAX_SUMS];
        for (int i = 0; i < n_rows * n_halves; i++)
            high[i] = low[i] = _mm256_setzero_si256();
        X86_KEEP_LOOP
        for (int g = 0; g < 4; g++) {
            const uint8_t *at = w + b * 256 + g * 64;
            if (n_halves == 2)
                _mm_prefetch((const char *)at + PREFETCH_BYTES, _MM_HINT_T0);
            for (int h = 0; h < n_halves; h++) {
                __m256i packed = load(at + h * 32);
                __m256i first = _mm256_and_si256(packed, low4);
                __m256i second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low4);
                for (int r = 0; r < n_rows; r++) {
                    const int8_t *q =
                        m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                    int i = r * n_halves + h;
                    high[i] = add_pairs(high[i], first, q);
                    high[i] = add_pairs(high[i], second, q + 16);
                    low[i] = add_pairs(low[i], first, q + KERNEL_BLOCK);
                    low[i] = add_pairs(low[i], second, q + KERNEL_BLOCK + 16);
                }
            }
        }
        for (int r = 0; r < n_rows; r++) {
            size_t xb = (row + (size_t)r) * stride + b;
            __m256 xs = _mm256_set1_ps(m->x->scale[xb]);
            __m256 xsum = _mm256_set1_ps(m->x->scale[xb] * (float)m->x->sum[xb]);
            for (int h = 0; h < n_halves; h++) {
                int i = r * n_halves + h;
                __m256 isum =
                    join(_mm256_madd_epi16(high[i], ones), _mm256_madd_epi16(low[i], ones));
                __m256 ws = halves(wscale + b * KERNEL_TILE + h * 8);
                __m256 wm = halves(wmin + b * KERNEL_TILE + h * 8);
                acc[i] = _mm256_fmadd_ps(isum, _mm256_mul_ps(ws, xs), acc[i]);
                acc[i] = _mm256_fmadd_ps(wm, xsum, acc[i]);
            }
        }
    }
    for (int i = 0; i < n_rows * n_halves; i++)
        finish(m, row + (size_t)(i / n_halves), t, half + i % n_halves, acc[i]);
}

#define DEFINE_TILE(name, part)                                                                    \
    INLINE void name(const struct matmul *m, size_t t, size_t row, const int n_rows)               \
    {                                                                                              \
        if (n_rows * 2 <= MAX_SUMS) {                                                              \
            part(m, t, 0, 2, row, n_rows);                                                         \
        } else {                                                                                   \
            part(m, t, 0, 1, row, n_rows);                                                         \
            part(m, t, 1, 1, row, n_rows);                                                         \
        }                                                                                          \
    }

DEFINE_TILE(q8_tile, q8_part)
DEFINE_TILE(q4_tile, q4_part)

X86_DEFINE_MATMUL(matmul_q8, q8_tile, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4, q4_tile, MAX_ROWS)

const struct kernels KERNELS_AVX2 = X86_TABLE("avx2");
#endif
