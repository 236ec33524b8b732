/* The integer products for AVX-512 with VNNI (F, BW, VL, VNNI). Same bits as scalar.c. The other
 * kernels are the 256-bit ones of x86_common.h. */
#if defined(__x86_64__)
#include "engine/kernels/x86_common.h"

/* Rows of one pass over a weight tile: integer and float sums fill most of the 32 registers. */
#define MAX_ROWS 8

INLINE __m512i broadcast4(const int8_t *q)
{
    int32_t four;
    memcpy(&four, q, sizeof(four));
    return _mm512_set1_epi32(four);
}

INLINE __m512 halves(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE void finish(const struct matmul *m, size_t row, size_t t, __m512 acc)
{
    float *out = m->out + (row - m->row_begin) * m->out_stride + (t - m->tile_begin) * KERNEL_TILE;
    _mm512_storeu_ps(out, m->accumulate ? _mm512_add_ps(_mm512_loadu_ps(out), acc) : acc);
}

/* 255 * high + low, as float */
INLINE __m512 join(__m512i high, __m512i low)
{
    return _mm512_cvtepi32_ps(
        _mm512_add_epi32(_mm512_slli_epi32(high, 8), _mm512_sub_epi32(low, high)));
}

/* vpdpbusd wants one unsigned factor: the weight plus 128 (its top bit flipped). The low sum starts
 * at -128 * sum(activations), which takes the surplus of both digits away again, exactly. */
INLINE void q8_rows(const struct matmul *m, size_t t, size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    const uint16_t *wscale = (const uint16_t *)(w + n_blocks * 512);
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m512i high[MAX_ROWS];
        __m512i low[MAX_ROWS];
        for (int r = 0; r < n_rows; r++) {
            high[r] = _mm512_setzero_si512();
            low[r] = _mm512_set1_epi32(-128 * m->x->sum[(row + (size_t)r) * stride + b]);
        }
        for (int g = 0; g < 8; g++) {
            __m512i weight = _mm512_xor_si512(_mm512_loadu_si512(w + b * 512 + g * 64), flip);
            for (int r = 0; r < n_rows; r++) {
                const int8_t *q =
                    m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                high[r] = _mm512_dpbusd_epi32(high[r], weight, broadcast4(q));
                low[r] = _mm512_dpbusd_epi32(low[r], weight, broadcast4(q + KERNEL_BLOCK));
            }
        }
        __m512 ws = halves(wscale + b * KERNEL_TILE);
        for (int r = 0; r < n_rows; r++) {
            __m512 xs = _mm512_set1_ps(m->x->scale[(row + (size_t)r) * stride + b]);
            acc[r] = _mm512_fmadd_ps(join(high[r], low[r]), _mm512_mul_ps(ws, xs), acc[r]);
        }
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, acc[r]);
}

INLINE void q4_rows(const struct matmul *m, size_t t, size_t row, const int n_rows)
{
    const size_t n_blocks = m->n_blocks;
    const size_t stride = m->x->stride;
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    const uint16_t *wscale = (const uint16_t *)(w + n_blocks * 256);
    const uint16_t *wmin = wscale + n_blocks * KERNEL_TILE;
    const __m512i low4 = _mm512_set1_epi8(15);
    __m512 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < n_blocks; b++) {
        __m512i high[MAX_ROWS];
        __m512i low[MAX_ROWS];
        for (int r = 0; r < n_rows; r++)
            high[r] = low[r] = _mm512_setzero_si512();
        for (int g = 0; g < 4; g++) {
            __m512i packed = _mm512_loadu_si512(w + b * 256 + g * 64);
            __m512i first = _mm512_and_si512(packed, low4);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low4);
            for (int r = 0; r < n_rows; r++) {
                const int8_t *q =
                    m->x->q + ((row + (size_t)r) * stride + b) * KERNEL_Q_BYTES + g * 4;
                high[r] = _mm512_dpbusd_epi32(high[r], first, broadcast4(q));
                high[r] = _mm512_dpbusd_epi32(high[r], second, broadcast4(q + 16));
                low[r] = _mm512_dpbusd_epi32(low[r], first, broadcast4(q + KERNEL_BLOCK));
                low[r] = _mm512_dpbusd_epi32(low[r], second, broadcast4(q + KERNEL_BLOCK + 16));
            }
        }
        __m512 ws = halves(wscale + b * KERNEL_TILE);
        __m512 wm = halves(wmin + b * KERNEL_TILE);
        for (int r = 0; r < n_rows; r++) {
            size_t xb = (row + (size_t)r) * stride + b;
            __m512 xs = _mm512_set1_ps(m->x->scale[xb]);
            __m512 xsum = _mm512_set1_ps(m->x->scale[xb] * (float)m->x->sum[xb]);
            acc[r] = _mm512_fmadd_ps(join(high[r], low[r]), _mm512_mul_ps(ws, xs), acc[r]);
            acc[r] = _mm512_fmadd_ps(wm, xsum, acc[r]);
        }
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, acc[r]);
}

X86_DEFINE_MATMUL(matmul_q8, q8_rows, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4, q4_rows, MAX_ROWS)

const struct kernels KERNELS_AVX512 = X86_TABLE("avx512");
#endif
