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
#define Q4_K_BYTES 144
#define Q4_K_BLOCKS 8 /* of 32 elements */

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

/* One row as int8 blocks: q[n_blocks * 32], scale[n_blocks]. x is scratch for n_in floats. Q8_0 and
 * Q5_0 are such blocks; of other types eight bits are the nearest. */
static void row_to_q8(const struct row_source *row, uint32_t n_in, float *x, int8_t *q,
                      uint16_t *scale)
{
    const enum tensor_type type = row->tensor->type;
    const uint8_t *src = row_data(row);
    if (type == TENSOR_Q8_0 || type == TENSOR_Q5_0) {
        for (size_t b = 0; b < n_in / KERNEL_BLOCK; b++, src += tensor_block_bytes(type)) {
            struct tensor_block block;
            tensor_get_block(type, src, &block);
            scale[b] = load_half(src);
            memcpy(q + b * KERNEL_BLOCK, block.q, KERNEL_BLOCK);
        }
        return;
    }
    tensor_dequantize(row->tensor->type, src, n_in, x);
    quantize_row_q8(x, n_in, q, scale);
}

static void pack_tile_q8(const struct row_source *rows, const struct matrix *m, size_t tile,
                         float *x, int8_t *q, uint16_t *scale)
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

/* One row of 4-bit blocks. Q4_0 is scale * (nibble - 8); times 8 is exact in a half below its
 * largest values. */
static void pack_row_q4(const struct row_source *row, const struct matrix *m, uint8_t *w, size_t r)
{
    const enum kernel_layout layout = matrix_layout(m);
    const enum tensor_type type = row->tensor->type;
    const size_t src_bytes = type == TENSOR_Q4_0 ? Q4_0_BYTES : Q4_1_BYTES;
    const uint8_t *src = row_data(row);
    uint8_t eight[Q4_K_BLOCKS * Q4_1_BYTES];

    for (size_t b = 0; b < m->n_blocks; b++) {
        uint8_t *block = w + b * kernel_block_bytes(layout);
        uint16_t *wscale = (uint16_t *)(void *)(block + kernel_weight_bytes(layout));
        const uint8_t *from = src + b * src_bytes;
        if (type == TENSOR_Q4_K) {
            if (b % Q4_K_BLOCKS == 0)
                tensor_q4_k_as_q4_1(src + b / Q4_K_BLOCKS * Q4_K_BYTES, eight);
            from = eight + b % Q4_K_BLOCKS * Q4_1_BYTES;
        }
        wscale[r] = load_half(from);
        if (layout == KERNEL_Q4_MIN)
            (wscale + KERNEL_TILE)[r] = type == TENSOR_Q4_0
                                            ? float_to_half(-8.0f * half_to_float(wscale[r]))
                                            : load_half(from + 2);
        for (size_t g = 0; g < 4; g++)
            memcpy(block + g * 64 + r * 4, from + src_bytes - 16 + g * 4, 4);
    }
}

static void pack_tile_q4(const struct row_source *rows, const struct matrix *m, size_t tile)
{
    for (size_t r = 0; r < KERNEL_TILE; r++)
        if (rows[r].tensor)
            pack_row_q4(&rows[r], m, m->data + tile * m->tile_bytes, r);
}

static void pack_tile_f32(const struct row_source *rows, const struct matrix *m, size_t tile)
{
    float *out = (float *)(void *)(m->data + tile * m->tile_bytes);
    for (size_t r = 0; r < KERNEL_TILE; r++)
        if (rows[r].tensor)
            tensor_dequantize(rows[r].tensor->type, row_data(&rows[r]), m->n_in, out + r * m->n_in);
}

enum matrix_type matrix_type_for(enum tensor_type source, uint32_t n_in)
{
    if (n_in % KERNEL_BLOCK)
        return MATRIX_Q8;
    if (source == TENSOR_Q4_0)
        return MATRIX_Q4;
    return source == TENSOR_Q4_1 || source == TENSOR_Q4_K ? MATRIX_Q4_MIN : MATRIX_Q8;
}

bool matrix_keeps_exactly(enum matrix_type type, enum tensor_type source)
{
    return type == MATRIX_F32 ||
           (type == MATRIX_Q8 && (source == TENSOR_Q8_0 || source == TENSOR_Q5_0)) ||
           (type == MATRIX_Q4 && source == TENSOR_Q4_0) ||
           (type == MATRIX_Q4_MIN && source == TENSOR_Q4_1);
}

/* The 32 values of row r in a tile's block, as kernels.h writes them. */
static void unpack_block(enum kernel_layout layout, const uint8_t *block, size_t r, float *out)
{
    const uint16_t *wscale = (const uint16_t *)(const void *)(block + kernel_weight_bytes(layout));
    float scale = half_to_float(wscale[r]);
    /* adding -0 changes nothing, not even the sign of a zero */
    float min = layout == KERNEL_Q4_MIN ? half_to_float(wscale[KERNEL_TILE + r]) : -0.0f;
    int zero = layout == KERNEL_Q4 ? 8 : 0;

    for (size_t i = 0; i < KERNEL_BLOCK; i++) {
        if (layout == KERNEL_Q8) {
            out[i] = scale * (float)(int8_t)block[i / 4 * 64 + r * 4 + i % 4];
            continue;
        }
        uint8_t both = block[i % 16 / 4 * 64 + r * 4 + i % 4];
        out[i] = scale * (float)((i < 16 ? both & 15 : both >> 4) - zero) + min;
    }
}

void matrix_unpack_row(const struct matrix *matrix, uint32_t row, float *out)
{
    const uint8_t *tile = matrix->data + row / KERNEL_TILE * matrix->tile_bytes;
    size_t r = row % KERNEL_TILE;

    if (matrix->type == MATRIX_F32) {
        memcpy(out, tile + r * matrix->n_in * sizeof(float), matrix->n_in * sizeof(float));
        return;
    }
    for (size_t b = 0; b < matrix->n_blocks; b++) {
        float values[KERNEL_BLOCK];
        size_t rest = matrix->n_in - b * KERNEL_BLOCK;
        unpack_block(matrix_layout(matrix), tile + b * kernel_block_bytes(matrix_layout(matrix)), r,
                     values);
        memcpy(out + b * KERNEL_BLOCK, values,
               (rest < KERNEL_BLOCK ? rest : KERNEL_BLOCK) * sizeof(float));
    }
}

static uint8_t *take_given(struct weight_arena *arena, size_t rounded)
{
    if (rounded > arena->size - arena->used)
        return NULL;
    arena->used += rounded;
    return (uint8_t *)(uintptr_t)arena->given + arena->used - rounded; /* nobody writes there */
}

/* Zeros, unless the memory is given. */
uint8_t *weight_arena_take(struct weight_arena *arena, size_t bytes)
{
    size_t rounded = (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    if (arena->given)
        return take_given(arena, rounded);
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
    mapped_file_close(&arena->map);
    *arena = (struct weight_arena){0};
}

int matrix_alloc(enum matrix_type type, uint32_t n_rows, uint32_t n_in, struct weight_arena *arena,
                 struct matrix *ret_matrix, struct error *err)
{
    size_t bytes;
    struct matrix m = {
        .type = type,
        .n_rows = n_rows,
        .n_in = n_in,
        .n_blocks = (n_in + KERNEL_BLOCK - 1) / KERNEL_BLOCK,
    };
    if (type == MATRIX_F32)
        m.tile_bytes = KERNEL_TILE * sizeof(float) * n_in;
    else
        m.tile_bytes = kernel_tile_bytes(matrix_layout(&m), m.n_blocks);
    if (!mem_mul(n_rows / KERNEL_TILE, m.tile_bytes, &bytes))
        return error_memory(err, "packed weights", n_rows);
    m.data = weight_arena_take(arena, bytes);
    if (!m.data && arena->given)
        return error_set(err, ERROR_FORMAT, "packed weights end too early");
    if (!m.data)
        return error_memory(err, "packed weights", bytes);
    *ret_matrix = m;
    return 0;
}

int matrix_fill(const struct matrix *matrix, const struct row_source *rows, size_t tile_begin,
                size_t tile_end, struct error *err)
{
    size_t n_padded = (size_t)matrix->n_blocks * KERNEL_BLOCK;
    _cleanup_mem_ float *x = mem_array(n_padded, sizeof(float));
    _cleanup_mem_ int8_t *q = mem_array(n_padded, 1);
    _cleanup_mem_ uint16_t *scale = mem_array(matrix->n_blocks, sizeof(uint16_t));

    if (!x || !q || !scale)
        return error_memory(err, "packing scratch", n_padded * 7);
    for (size_t t = tile_begin; t < tile_end; t++) {
        const struct row_source *tile_rows = rows + t * KERNEL_TILE;
        if (matrix->type == MATRIX_Q8)
            pack_tile_q8(tile_rows, matrix, t, x, q, scale);
        else if (matrix->type == MATRIX_F32)
            pack_tile_f32(tile_rows, matrix, t);
        else
            pack_tile_q4(tile_rows, matrix, t);
    }
    return 0;
}

size_t matrix_bytes(const struct matrix *matrix)
{
    return matrix->n_rows / KERNEL_TILE * matrix->tile_bytes;
}
