/* Rows of file tensors into the kernels' packed layout. The layouts are kernels.h's. */
#include "engine/model/pack.h"

#include "engine/base/half.h"
#include "engine/base/mem.h"

#include <math.h>
#include <string.h>

/* What is not used of a block is never touched, so it costs address space only. */
#define ARENA_BLOCK ((size_t)32 << 20)

#define Q4_0_BYTES 18 /* half scale, 16 bytes of nibbles */
#define Q4_1_BYTES 20 /* half scale, half min, 16 bytes of nibbles */
#define Q8_0_BYTES 34 /* half scale, 32 int8 */

static const uint8_t *row_data(const struct row_source *row)
{
    size_t bytes;
    if (!tensor_type_bytes(row->tensor->type, row->tensor->dims[0], &bytes))
        return NULL; /* the file reader has checked it */
    return (const uint8_t *)row->tensor->data + row->index * bytes;
}

static uint16_t load_half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof(h));
    return h;
}

/* A row of float to blocks of int8 whose scale is a half: the scale is rounded first, so that the
 * weights are the best ones for the scale that is stored. */
static void quantize_row_q8(const float *x, size_t n, int8_t *q, uint16_t *scale)
{
    for (size_t b = 0; b * KERNEL_BLOCK < n; b++) {
        size_t len = n - b * KERNEL_BLOCK < KERNEL_BLOCK ? n - b * KERNEL_BLOCK : KERNEL_BLOCK;
        float max = 0;
        for (size_t i = 0; i < len; i++)
            max = fmaxf(max, fabsf(x[b * KERNEL_BLOCK + i]));
        scale[b] = float_to_half(max / 127.0f);
        float rounded = half_to_float(scale[b]);
        float inverse = rounded > 0 ? 1.0f / rounded : 0;
        for (size_t i = 0; i < KERNEL_BLOCK; i++) {
            float v = i < len ? rintf(x[b * KERNEL_BLOCK + i] * inverse) : 0;
            q[b * KERNEL_BLOCK + i] = (int8_t)fminf(fmaxf(v, -127), 127);
        }
    }
}

/* One row as int8 blocks: q[n_blocks * 32], scale[n_blocks]. x is scratch for n_in floats. */
static void row_to_q8(const struct row_source *row, uint32_t n_in, float *x, int8_t *q,
                      uint16_t *scale)
{
    const uint8_t *src = row_data(row);
    if (row->tensor->type == TENSOR_Q8_0) {
        for (size_t b = 0; b < n_in / KERNEL_BLOCK; b++) {
            scale[b] = load_half(src + b * Q8_0_BYTES);
            memcpy(q + b * KERNEL_BLOCK, src + b * Q8_0_BYTES + 2, KERNEL_BLOCK);
        }
        return;
    }
    tensor_dequantize(row->tensor->type, src, n_in, x);
    quantize_row_q8(x, n_in, q, scale);
}

static void pack_tile_q8(const struct row_source *rows, struct matrix *m, size_t tile, float *x,
                         int8_t *q, uint16_t *scale)
{
    uint8_t *w = m->data + tile * m->tile_bytes;

    for (size_t r = 0; r < KERNEL_TILE; r++) {
        if (!rows[r].tensor)
            continue; /* the memory is zeroed */
        row_to_q8(&rows[r], m->n_in, x, q, scale);
        for (size_t b = 0; b < m->n_blocks; b++) {
            uint8_t *block = w + b * kernel_block_bytes(KERNEL_Q8);
            ((uint16_t *)(void *)(block + kernel_weight_bytes(KERNEL_Q8)))[r] = scale[b];
            for (size_t g = 0; g < 8; g++)
                memcpy(block + g * 64 + r * 4, q + b * KERNEL_BLOCK + g * 4, 4);
        }
    }
}

static void pack_tile_q4(const struct row_source *rows, struct matrix *m, size_t tile)
{
    const enum kernel_layout layout = matrix_layout(m);
    uint8_t *w = m->data + tile * m->tile_bytes;

    for (size_t r = 0; r < KERNEL_TILE; r++) {
        if (!rows[r].tensor)
            continue;
        bool has_min = rows[r].tensor->type == TENSOR_Q4_1;
        const uint8_t *src = row_data(&rows[r]);
        for (size_t b = 0; b < m->n_blocks; b++, src += has_min ? Q4_1_BYTES : Q4_0_BYTES) {
            uint8_t *block = w + b * kernel_block_bytes(layout);
            uint16_t *wscale = (uint16_t *)(void *)(block + kernel_weight_bytes(layout));
            uint16_t *wmin = wscale + KERNEL_TILE;
            uint16_t scale = load_half(src);
            wscale[r] = scale;
            /* Q4_0 is scale * (nibble - 8); times 8 is exact in a half below its largest values */
            if (layout == KERNEL_Q4_MIN)
                wmin[r] =
                    has_min ? load_half(src + 2) : float_to_half(-8.0f * half_to_float(scale));
            const uint8_t *nibbles = src + (has_min ? 4 : 2);
            for (size_t g = 0; g < 4; g++)
                memcpy(block + g * 64 + r * 4, nibbles + g * 4, 4);
        }
    }
}

/* `bytes` of zeros, aligned to MEM_ALIGN; NULL when there is no memory. */
static uint8_t *arena_take(struct weight_arena *arena, size_t bytes)
{
    size_t rounded = (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    if (!arena->n_blocks || rounded > arena->size - arena->used) {
        size_t size = rounded > ARENA_BLOCK ? rounded : ARENA_BLOCK;
        uint8_t **blocks = mem_realloc(arena->blocks, arena->n_blocks + 1, sizeof(*blocks));
        if (!blocks)
            return NULL;
        arena->blocks = blocks;
        blocks[arena->n_blocks] = mem_alloc_aligned(size);
        if (!blocks[arena->n_blocks])
            return NULL;
        arena->n_blocks++;
        arena->size = size;
        arena->used = 0;
    }
    uint8_t *p = arena->blocks[arena->n_blocks - 1] + arena->used;
    arena->used += rounded;
    memset(p, 0, bytes);
    return p;
}

void weight_arena_free(struct weight_arena *arena)
{
    for (size_t i = 0; i < arena->n_blocks; i++)
        mem_free(arena->blocks[i]);
    mem_free(arena->blocks);
    *arena = (struct weight_arena){0};
}

static int alloc_matrix(enum matrix_type type, uint32_t n_rows, uint32_t n_in,
                        struct weight_arena *arena, struct matrix *m, struct error *err)
{
    size_t bytes;
    *m = (struct matrix){
        .type = type,
        .n_rows = n_rows,
        .n_in = n_in,
        .n_blocks = (n_in + KERNEL_BLOCK - 1) / KERNEL_BLOCK,
    };
    if (type == MATRIX_F32)
        m->tile_bytes = KERNEL_TILE * sizeof(float) * n_in;
    else
        m->tile_bytes = kernel_tile_bytes(matrix_layout(m), m->n_blocks);
    if (!mem_mul(n_rows / KERNEL_TILE, m->tile_bytes, &bytes))
        return error_memory(err, "packed weights", n_rows);
    m->data = arena_take(arena, bytes);
    if (!m->data)
        return error_memory(err, "packed weights", bytes);
    return 0;
}

int matrix_pack(enum matrix_type type, const struct row_source *rows, uint32_t n_rows,
                uint32_t n_in, struct weight_arena *arena, struct matrix *ret_matrix,
                struct error *err)
{
    struct matrix m;
    size_t n_padded = ((size_t)n_in + KERNEL_BLOCK - 1) / KERNEL_BLOCK * KERNEL_BLOCK;
    _cleanup_mem_ float *x = mem_array(n_padded, sizeof(float));
    _cleanup_mem_ int8_t *q = mem_array(n_padded, 1);
    _cleanup_mem_ uint16_t *scale = mem_array(n_padded / KERNEL_BLOCK, sizeof(uint16_t));

    if (!x || !q || !scale)
        return error_memory(err, "packing scratch", n_padded * 7);
    int rc = alloc_matrix(type, n_rows, n_in, arena, &m, err);
    if (rc)
        return rc;
    for (size_t t = 0; t < n_rows / KERNEL_TILE; t++) {
        const struct row_source *tile_rows = rows + t * KERNEL_TILE;
        if (type == MATRIX_Q8) {
            pack_tile_q8(tile_rows, &m, t, x, q, scale);
        } else if (type != MATRIX_F32) {
            pack_tile_q4(tile_rows, &m, t);
        } else {
            float *out = (float *)(void *)(m.data + t * m.tile_bytes);
            for (size_t r = 0; r < KERNEL_TILE; r++)
                if (tile_rows[r].tensor)
                    tensor_dequantize(tile_rows[r].tensor->type, row_data(&tile_rows[r]), n_in,
                                      out + r * n_in);
        }
    }
    *ret_matrix = m;
    return 0;
}

size_t matrix_bytes(const struct matrix *matrix)
{
    return matrix->n_rows / KERNEL_TILE * matrix->tile_bytes;
}
