/* How keys and values are written to pages and read again. Each value's rounding depends on its own
 * token and head only, so a page has the same bytes whoever wrote it, in whatever steps. See kv.h.
 */
#include "engine/base/half.h"
#include "engine/kv/kv_internal.h"

#include <math.h>
#include <string.h>

#define T KERNEL_PAGE_TOKENS
#define BLOCK 32
#define MOST_BLOCKS 16 /* of a head: head_dim is 512 at most */

static uint32_t n_blocks(const struct kv_layout *layout)
{
    return (layout->head_dim + BLOCK - 1) / BLOCK;
}

size_t kv_head_bytes(const struct kv_layout *layout)
{
    size_t scales = layout->format == KV_BLOCKS ? n_blocks(layout) * sizeof(uint16_t) : 0;
    return T * ((size_t)layout->head_dim * layout->element_bytes + scales);
}

/* Round to nearest, ties to even; what is no number stays none. */
static uint16_t float_to_brain(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    if (isnan(x))
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float brain_to_float(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* x[n], n <= BLOCK, to q[n] and its scale. */
static uint16_t to_block(const float *x, uint32_t n, int8_t *q)
{
    float max = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    uint16_t half = float_to_half(max / 127);
    float scale = half_to_float(half);
    for (uint32_t i = 0; i < n; i++) {
        float v = scale > 0 ? rintf(x[i] / scale) : 0;
        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return half;
}

/* x[head_dim] to q[head_dim] and scales[n_blocks] */
static void to_blocks(const struct kv_layout *layout, const float *x, int8_t *q, uint16_t *scales)
{
    for (uint32_t b = 0; b * BLOCK < layout->head_dim; b++) {
        uint32_t rest = layout->head_dim - b * BLOCK;
        scales[b] = to_block(x + b * BLOCK, rest < BLOCK ? rest : BLOCK, q + b * BLOCK);
    }
}

void kv_store_key(const struct kv_pool *pool, const struct kernels *kernels, void *keys, uint32_t t,
                  const float *k)
{
    const struct kv_layout *layout = &pool->layout;
    uint32_t n = layout->head_dim;
    uint16_t half[MOST_BLOCKS * BLOCK];
    if (layout->format == KV_BLOCKS) {
        int8_t q[MOST_BLOCKS * BLOCK];
        uint16_t scales[MOST_BLOCKS];
        uint16_t *page_scales = (uint16_t *)((int8_t *)keys + (size_t)n * T);
        to_blocks(layout, k, q, scales);
        for (uint32_t d = 0; d < n; d++)
            ((int8_t *)keys)[d * T + t] = q[d];
        for (uint32_t b = 0; b < n_blocks(layout); b++)
            page_scales[b * T + t] = scales[b];
        return;
    }
    if (layout->element_bytes == sizeof(float)) {
        for (uint32_t d = 0; d < n; d++)
            ((float *)keys)[d * T + t] = k[d];
        return;
    }
    if (layout->format == KV_BRAIN)
        for (uint32_t d = 0; d < n; d++)
            half[d] = float_to_brain(k[d]);
    else
        kernels->float_to_half(k, n, half);
    for (uint32_t d = 0; d < n; d++)
        ((uint16_t *)keys)[d * T + t] = half[d];
}

void kv_store_value(const struct kv_pool *pool, const struct kernels *kernels, void *values,
                    uint32_t t, const float *v)
{
    const struct kv_layout *layout = &pool->layout;
    uint32_t n = layout->head_dim;
    if (layout->format == KV_BLOCKS) {
        int8_t *q = values;
        uint16_t *scales = (uint16_t *)(q + (size_t)n * T);
        to_blocks(layout, v, q + (size_t)t * n, scales + (size_t)t * n_blocks(layout));
    } else if (layout->element_bytes == sizeof(float)) {
        memcpy((float *)values + (size_t)t * n, v, n * sizeof(float));
    } else if (layout->format == KV_BRAIN) {
        for (uint32_t d = 0; d < n; d++)
            ((uint16_t *)values)[(size_t)t * n + d] = float_to_brain(v[d]);
    } else {
        kernels->float_to_half(v, n, (uint16_t *)values + (size_t)t * n);
    }
}

static void load_brain(const uint16_t *src, size_t n, float *dst)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = brain_to_float(src[i]);
}

static void load_block_keys(const struct kv_layout *layout, const int8_t *q, float *dst)
{
    uint32_t n = layout->head_dim;
    const uint16_t *scales = (const uint16_t *)(q + (size_t)n * T);
    float scale[T];
    for (uint32_t d = 0; d < n; d++) {
        if (d % BLOCK == 0)
            for (uint32_t t = 0; t < T; t++)
                scale[t] = half_to_float(scales[d / BLOCK * T + t]);
        for (uint32_t t = 0; t < T; t++)
            dst[d * T + t] = scale[t] * q[d * T + t];
    }
}

static void load_block_values(const struct kv_layout *layout, const int8_t *q, float *dst)
{
    uint32_t n = layout->head_dim;
    const uint16_t *scales = (const uint16_t *)(q + (size_t)n * T);
    for (uint32_t t = 0; t < T; t++) {
        for (uint32_t b = 0; b < n_blocks(layout); b++) {
            float scale = half_to_float(scales[t * n_blocks(layout) + b]);
            uint32_t end = (b + 1) * BLOCK < n ? (b + 1) * BLOCK : n;
            for (uint32_t d = b * BLOCK; d < end; d++)
                dst[t * n + d] = scale * q[t * n + d];
        }
    }
}

bool kv_is_half(const struct kv_pool *pool)
{
    return pool->layout.format == KV_PLAIN && pool->layout.element_bytes == sizeof(uint16_t);
}

void kv_load(const struct kv_pool *pool, const struct kernels *kernels, const void *page_keys,
             const void *page_values, float *scratch_keys, float *scratch_values,
             const float **ret_keys, const float **ret_values)
{
    const struct kv_layout *layout = &pool->layout;
    size_t n = (size_t)layout->head_dim * T;
    *ret_keys = scratch_keys;
    *ret_values = scratch_values;
    if (layout->format == KV_BLOCKS) {
        load_block_keys(layout, page_keys, scratch_keys);
        load_block_values(layout, page_values, scratch_values);
    } else if (layout->format == KV_BRAIN) {
        load_brain(page_keys, n, scratch_keys);
        load_brain(page_values, n, scratch_values);
    } else if (layout->element_bytes == sizeof(float)) {
        *ret_keys = page_keys;
        *ret_values = page_values;
    } else {
        kernels->half_to_float(page_keys, n, scratch_keys);
        kernels->half_to_float(page_values, n, scratch_values);
    }
}
