/* The specification of every kernel, written for reading. See kernels.h; avx2.c and avx512.c give
 * the same bits. fmaf is the one rounding that a hardware fma does. */
#include "engine/base/half.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"

#include <math.h>
#include <string.h>

static void rmsnorm(const float *x, const float *weight, size_t n, size_t width, float eps,
                    float *out)
{
    float lanes[16] = {0};
    for (size_t i = 0; i < n; i++)
        lanes[i % 16] = fmaf(x[i], x[i], lanes[i % 16]);
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];

    float scale = 1.0f / sqrtf(lanes[0] / (float)width + eps);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

/* Where input i of a block lies. */
static size_t place(size_t i)
{
    static const size_t ORDER[4] = {0, 2, 1, 3};
    return i / 4 * 4 + ORDER[i % 4];
}

static void quantize(const float *x, size_t n, bool coarse, int16_t *q, float *scale, int32_t *sum)
{
    const float q_max = coarse ? KERNEL_Q_COARSE_MAX : KERNEL_Q_MAX;
    const int32_t step = coarse ? KERNEL_Q_COARSE_STEP : 1;
    for (size_t b = 0; b * KERNEL_BLOCK < n; b++, q += KERNEL_BLOCK) {
        size_t begin = b * KERNEL_BLOCK;
        size_t len = n - begin < KERNEL_BLOCK ? n - begin : KERNEL_BLOCK;
        float max = 0;
        for (size_t i = 0; i < len; i++)
            max = fmaxf(max, fabsf(x[begin + i]));

        float inverse = max > 0 ? q_max / max : 0;
        int32_t total = 0;
        memset(q, 0, KERNEL_BLOCK * sizeof(*q));
        for (size_t i = 0; i < len; i++) {
            int32_t v = (int32_t)lrintf(x[begin + i] * inverse) * step;
            q[place(i)] = (int16_t)v;
            total += v;
        }
        scale[b] = max / (q_max * (float)step);
        sum[b] = total;
    }
}

static void store(const struct matmul *m, size_t row, size_t t, size_t r, float acc)
{
    float *out =
        m->out + (row - m->row_begin) * m->out_stride + (t - m->tile_begin) * KERNEL_TILE + r;
    *out = m->accumulate ? *out + acc : acc;
}

static void matmul_q8(const struct matmul *m)
{
    const struct quantized_rows *x = m->x;
    for (size_t t = m->tile_begin; t < m->tile_end; t++) {
        const uint8_t *tile = m->tiles + t * m->tile_bytes;
        for (size_t row = m->row_begin; row < m->row_end; row++) {
            for (size_t r = 0; r < KERNEL_TILE; r++) {
                float acc = 0;
                for (size_t b = 0; b < m->n_blocks; b++) {
                    const int8_t *w = (const int8_t *)(tile + b * kernel_block_bytes(KERNEL_Q8));
                    const uint16_t *scale = (const uint16_t *)(w + kernel_weight_bytes(KERNEL_Q8));
                    const int16_t *q = x->q + (row * x->stride + b) * KERNEL_BLOCK;
                    int32_t isum = 0;
                    for (size_t i = 0; i < KERNEL_BLOCK; i++)
                        isum += q[place(i)] * w[(i / 4) * 64 + r * 4 + i % 4];
                    acc = fmaf((float)isum, half_to_float(scale[r]) * x->scale[row * x->stride + b],
                               acc);
                }
                store(m, row, t, r, acc);
            }
        }
    }
}

/* Either layout of nibbles. */
static void matmul_nibbles(const struct matmul *m, enum kernel_layout layout)
{
    const struct quantized_rows *x = m->x;
    for (size_t t = m->tile_begin; t < m->tile_end; t++) {
        const uint8_t *tile = m->tiles + t * m->tile_bytes;
        for (size_t row = m->row_begin; row < m->row_end; row++) {
            for (size_t r = 0; r < KERNEL_TILE; r++) {
                float acc = 0;
                for (size_t b = 0; b < m->n_blocks; b++) {
                    const uint8_t *w = tile + b * kernel_block_bytes(layout);
                    const uint16_t *scale =
                        (const uint16_t *)(const void *)(w + kernel_weight_bytes(layout));
                    const uint16_t *min = scale + KERNEL_TILE;
                    const int16_t *q = x->q + (row * x->stride + b) * KERNEL_BLOCK;
                    int32_t sum = x->sum[row * x->stride + b];
                    int32_t isum = layout == KERNEL_Q4 ? -8 * sum : 0;
                    for (size_t i = 0; i < KERNEL_BLOCK / 2; i++) {
                        uint8_t byte = w[(i / 4) * 64 + r * 4 + i % 4];
                        isum += q[place(i)] * (byte & 15) + q[place(i + 16)] * (byte >> 4);
                    }
                    float xscale = x->scale[row * x->stride + b];
                    acc = fmaf((float)isum, half_to_float(scale[r]) * xscale, acc);
                    if (layout == KERNEL_Q4_MIN)
                        acc = fmaf(half_to_float(min[r]), xscale * (float)sum, acc);
                }
                store(m, row, t, r, acc);
            }
        }
    }
}

static void matmul_q4(const struct matmul *m)
{
    matmul_nibbles(m, KERNEL_Q4);
}

static void matmul_q4_min(const struct matmul *m)
{
    matmul_nibbles(m, KERNEL_Q4_MIN);
}

static void silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + lane_exp(-gate[i])) * up[i];
}

static void rope(float *x, const float *cos, const float *sin, size_t half)
{
    for (size_t i = 0; i < half; i++) {
        float a = x[i];
        float b = x[i + half];
        x[i] = fmaf(a, cos[i], -(b * sin[i]));
        x[i + half] = fmaf(a, sin[i], b * cos[i]);
    }
}

static void half_to_float_n(const uint16_t *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = half_to_float(src[i]);
}

static void float_to_half_n(const float *src, size_t n, uint16_t *dst)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = float_to_half(src[i]);
}

static float page_element(const struct attend_page *a, const void *elements, size_t i)
{
    return a->is_half ? half_to_float(((const uint16_t *)elements)[i])
                      : ((const float *)elements)[i];
}

/* Scores of all 32 keys, masked ones -inf. */
static void page_scores(const struct attend_page *a, const float *q, size_t n_keys, float *scores)
{
    for (size_t t = 0; t < KERNEL_PAGE_TOKENS; t++) {
        float dot = 0;
        for (size_t d = 0; d < a->head_dim; d++)
            dot = fmaf(q[d], page_element(a, a->keys, d * KERNEL_PAGE_TOKENS + t), dot);
        scores[t] = t < n_keys ? dot : -INFINITY;
    }
}

/* scores become exp(score - max), masked ones 0; returns their sum. */
static float page_softmax(float *scores, size_t n_keys, float max)
{
    float lanes[8] = {0};
    for (size_t t = 0; t < KERNEL_PAGE_TOKENS; t++) {
        scores[t] = t < n_keys ? lane_exp(scores[t] - max) : 0;
        lanes[t % 8] += scores[t];
    }
    for (size_t half = 4; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

static void attend(const struct attend_page *a)
{
    for (size_t i = 0; i < a->n_q; i++) {
        float *state = a->state + i * ATTEND_STATE(a->head_dim);
        float *acc = state + 2;
        float scores[KERNEL_PAGE_TOKENS];
        size_t n_keys = a->n_keys[i];
        if (!n_keys)
            continue;

        page_scores(a, a->q + i * a->q_stride, n_keys, scores);
        float max = state[0];
        for (size_t t = 0; t < n_keys; t++)
            max = scores[t] > max ? scores[t] : max;
        float correction = lane_exp(state[0] - max);
        state[1] = fmaf(state[1], correction, page_softmax(scores, n_keys, max));
        state[0] = max;

        for (size_t d = 0; d < a->head_dim; d++)
            acc[d] *= correction;
        for (size_t t = 0; t < n_keys; t++)
            for (size_t d = 0; d < a->head_dim; d++)
                acc[d] = fmaf(scores[t], page_element(a, a->values, t * a->head_dim + d), acc[d]);
    }
}

const struct kernels KERNELS_SCALAR = {
    .name = "scalar",
    .rmsnorm = rmsnorm,
    .products = {quantize, {matmul_q8, matmul_q4, matmul_q4_min}, 64},
    .silu_mul = silu_mul,
    .rope = rope,
    .half_to_float = half_to_float_n,
    .float_to_half = float_to_half_n,
    .attend = attend,
};
