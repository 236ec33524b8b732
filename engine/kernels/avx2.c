/* The kernels for AVX2 + FMA + F16C. Same bits as scalar.c, which says what each computes. */
#if defined(__x86_64__)
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"
#include "engine/kernels/x86_common.h"

/* Rows of one pass over half a weight tile (8 outputs): as many as leave the integer sums of both
 * digits in registers. */
#define MAX_ROWS 4

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

INLINE void q8_rows(const struct matmul *m, size_t t, int h, size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const int8_t *w = (const int8_t *)m->tiles + t * m->tile_bytes;
    const uint16_t *wscale = (const uint16_t *)(w + n_blocks * 512);
    __m256 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i high[MAX_ROWS];
        __m256i low[MAX_ROWS];
        for (int r = 0; r < n_rows; r++)
            high[r] = low[r] = _mm256_setzero_si256();
        for (int g = 0; g < 8; g++) {
            __m256i weight = load(w + b * 512 + g * 64 + h * 32);
            __m256i magnitude = _mm256_abs_epi8(weight);
            for (int r = 0; r < n_rows; r++) {
                const int8_t *q =
                    m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                high[r] = _mm256_add_epi32(high[r], dot4_q8(magnitude, weight, q));
                low[r] = _mm256_add_epi32(low[r], dot4_q8(magnitude, weight, q + KERNEL_BLOCK));
            }
        }
        __m256 ws = halves(wscale + b * KERNEL_TILE + 8 * h);
        for (int r = 0; r < n_rows; r++) {
            __m256 xs = _mm256_set1_ps(m->x->scale[(row + (size_t)r) * stride + b]);
            acc[r] = _mm256_fmadd_ps(join(high[r], low[r]), _mm256_mul_ps(ws, xs), acc[r]);
        }
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, h, acc[r]);
}

/* Nibbles are unsigned and small: eight pair sums of at most 2 * 15 * 127 fit 16 bits, so a whole
 * block is added before it is widened. */
INLINE __m256i add_pairs(__m256i sum, __m256i nibbles, const int8_t *q)
{
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, broadcast4(q)));
}

INLINE void q4_rows(const struct matmul *m, size_t t, int h, size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    const uint16_t *wscale = (const uint16_t *)(w + n_blocks * 256);
    const uint16_t *wmin = wscale + n_blocks * KERNEL_TILE;
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i low4 = _mm256_set1_epi8(15);
    __m256 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm256_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m256i high[MAX_ROWS];
        __m256i low[MAX_ROWS];
        for (int r = 0; r < n_rows; r++)
            high[r] = low[r] = _mm256_setzero_si256();
        X86_KEEP_LOOP
        for (int g = 0; g < 4; g++) {
            __m256i packed = load(w + b * 256 + g * 64 + h * 32);
            __m256i first = _mm256_and_si256(packed, low4);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low4);
            for (int r = 0; r < n_rows; r++) {
                const int8_t *q =
                    m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                high[r] = add_pairs(high[r], first, q);
                high[r] = add_pairs(high[r], second, q + 16);
                low[r] = add_pairs(low[r], first, q + KERNEL_BLOCK);
                low[r] = add_pairs(low[r], second, q + KERNEL_BLOCK + 16);
            }
        }
        __m256 ws = halves(wscale + b * KERNEL_TILE + 8 * h);
        __m256 wm = halves(wmin + b * KERNEL_TILE + 8 * h);
        for (int r = 0; r < n_rows; r++) {
            size_t xb = (row + (size_t)r) * stride + b;
            __m256 xs = _mm256_set1_ps(m->x->scale[xb]);
            __m256 xsum = _mm256_set1_ps(m->x->scale[xb] * (float)m->x->sum[xb]);
            __m256 isum = join(_mm256_madd_epi16(high[r], ones), _mm256_madd_epi16(low[r], ones));
            acc[r] = _mm256_fmadd_ps(isum, _mm256_mul_ps(ws, xs), acc[r]);
            acc[r] = _mm256_fmadd_ps(wm, xsum, acc[r]);
        }
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, h, acc[r]);
}

INLINE void q8_tile(const struct matmul *m, size_t t, size_t row, const int n_rows)
{
    q8_rows(m, t, 0, row, n_rows);
    q8_rows(m, t, 1, row, n_rows);
}

INLINE void q4_tile(const struct matmul *m, size_t t, size_t row, const int n_rows)
{
    q4_rows(m, t, 0, row, n_rows);
    q4_rows(m, t, 1, row, n_rows);
}

X86_DEFINE_MATMUL(matmul_q8, q8_tile, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4, q4_tile, MAX_ROWS)

const struct kernels KERNELS_AVX2 = X86_TABLE("avx2");
#endif
