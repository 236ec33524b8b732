/* Prompts with AMX (TILE, BF16): products, which are bf16_products.h with the sums in tiles, and
 * attention. Two groups of rows times two tiles of outputs share what is loaded. All else is that
 * of amx.c. */
#if defined(__x86_64__)
#include "engine/kernels/amx_tiles.h"
#define CHUNK 24
#include "engine/kernels/bf16_attend.h"

#include <math.h>

/* Tile registers: sums of group 0 or 1 and outputs 0 or 1, then rows, then weights. */
#define SUM_00 0
#define SUM_01 1
#define SUM_10 2
#define SUM_11 3
#define ROWS_0 4
#define ROWS_1 5
#define WEIGHTS_0 6
#define WEIGHTS_1 7

INLINE void begin_tiles(size_t group_rows)
{
    struct tile_shapes shapes = {.palette = 1};
    for (int i = SUM_00; i <= WEIGHTS_1; i++) {
        shapes.n_rows[i] = (uint8_t)(i < WEIGHTS_0 ? group_rows : GROUP_ROWS);
        shapes.row_bytes[i] = LINE;
    }
    load_shapes(&shapes);
}

INLINE void begin_rows(size_t n_rows)
{
    begin_tiles(groups_of(0, n_rows).n_rows);
}

INLINE void end_rows(void)
{
    _tile_release(); /* the tiles are no longer part of what a change of threads saves */
}

/* Where the sums of group i + j and output k of a chunk are kept from chunk to chunk. */
#define SUMS(j, k) s->sums[k][(i + (j)) * GROUP_ROWS]
#define BEGIN_SUM(sum, j, k)                                                                       \
    do {                                                                                           \
        if (c->block)                                                                              \
            _tile_loadd(sum, SUMS(j, k), LINE);                                                    \
        else                                                                                       \
            _tile_zero(sum);                                                                       \
    } while (0)

/* sums += a chunk of two groups of rows, the i-th and the next, or of one. */
INLINE void multiply_groups(const struct matmul *m, const struct groups *g, const struct chunk *c,
                            size_t i, const bool two_groups, const bool two_tiles,
                            struct scratch *s)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK * sizeof(int16_t);
    const int16_t *x0 = m->x->q + (group_begin(g, i) * m->x->stride + c->block) * KERNEL_BLOCK;
    const int16_t *x1 =
        two_groups ? m->x->q + (group_begin(g, i + 1) * m->x->stride + c->block) * KERNEL_BLOCK
                   : x0;

    BEGIN_SUM(SUM_00, 0, 0);
    if (two_tiles)
        BEGIN_SUM(SUM_01, 0, 1);
    if (two_groups)
        BEGIN_SUM(SUM_10, 1, 0);
    if (two_groups && two_tiles)
        BEGIN_SUM(SUM_11, 1, 1);
    X86_KEEP_LOOP
    for (size_t b = 0; b < c->n_blocks; b++) {
        _tile_loadd(WEIGHTS_0, s->weights[0][b], LINE);
        _tile_loadd(ROWS_0, x0 + b * KERNEL_BLOCK, stride);
        _tile_dpbf16ps(SUM_00, ROWS_0, WEIGHTS_0);
        if (two_groups) {
            _tile_loadd(ROWS_1, x1 + b * KERNEL_BLOCK, stride);
            _tile_dpbf16ps(SUM_10, ROWS_1, WEIGHTS_0);
        }
        if (two_tiles) {
            _tile_loadd(WEIGHTS_1, s->weights[1][b], LINE);
            _tile_dpbf16ps(SUM_01, ROWS_0, WEIGHTS_1);
        }
        if (two_groups && two_tiles)
            _tile_dpbf16ps(SUM_11, ROWS_1, WEIGHTS_1);
    }
    _tile_stored(SUM_00, SUMS(0, 0), LINE);
    if (two_tiles)
        _tile_stored(SUM_01, SUMS(0, 1), LINE);
    if (two_groups)
        _tile_stored(SUM_10, SUMS(1, 0), LINE);
    if (two_groups && two_tiles)
        _tile_stored(SUM_11, SUMS(1, 1), LINE);
}

INLINE void multiply(const struct matmul *m, const struct chunk *c, struct scratch *s)
{
    const struct groups g = groups_of(c->row_begin, c->row_end);
    /* the compiler does not know what a tile's load reads */
    __asm__ volatile("" : : "r"(s) : "memory");
    for (size_t i = 0; i < g.n; i += 2) {
        if (i + 1 < g.n)
            multiply_groups(m, &g, c, i, true, c->n_tiles == PAIR, s);
        else
            multiply_groups(m, &g, c, i, false, c->n_tiles == PAIR, s);
    }
    __asm__ volatile("" : : "r"(s) : "memory");
}

INLINE void store(const struct matmul *m, const struct chunk *c, const struct scratch *s)
{
    const struct groups g = groups_of(c->row_begin, c->row_end);
    for (size_t t = 0; t < c->n_tiles; t++)
        store_rows(m, &g, c->tile + t, s->sums[t]);
}

/* A tile's queries, what they score, how they weigh, and what they get. */
struct queries {
    _Alignas(LINE) int16_t q[MOST_HEAD_DIM / 32][GROUP_ROWS][32];
    float scores[2][GROUP_ROWS][16]; /* of 16 keys each */
    int16_t p[GROUP_ROWS][KERNEL_PAGE_TOKENS];
    float sums[MOST_HEAD_DIM / KERNEL_TILE][GROUP_ROWS][KERNEL_TILE];
    float max[GROUP_ROWS], sum[GROUP_ROWS]; /* of the softmax */
    float correction[GROUP_ROWS];
};

INLINE void begin_page(void)
{
    begin_tiles(GROUP_ROWS);
}

INLINE void end_page(void)
{
    _tile_release();
}

/* The compiler does not know what a tile's load reads, and what its store writes. */
INLINE void queries_in_memory(struct queries *q)
{
    __asm__ volatile("" : : "r"(q) : "memory");
}

/* Of the 32 keys. */
INLINE void score_queries(const struct attend_page *a, const struct pairs *s, struct queries *q)
{
    queries_in_memory(q);
    _tile_zero(SUM_00);
    _tile_zero(SUM_01);
    for (size_t d = 0; d < a->head_dim; d += 32) {
        _tile_loadd(ROWS_0, q->q[d / 32], LINE);
        _tile_loadd(WEIGHTS_0, s->keys[0][d / 2], LINE);
        _tile_loadd(WEIGHTS_1, s->keys[1][d / 2], LINE);
        _tile_dpbf16ps(SUM_00, ROWS_0, WEIGHTS_0);
        _tile_dpbf16ps(SUM_01, ROWS_0, WEIGHTS_1);
    }
    _tile_stored(SUM_00, q->scores[0], LINE);
    _tile_stored(SUM_01, q->scores[1], LINE);
    queries_in_memory(q);
}

/* sums = p times the values, two tiles of inputs at once. */
INLINE void sum_values(const struct attend_page *a, const struct pairs *s, struct queries *q)
{
    queries_in_memory(q);
    _tile_loadd(ROWS_0, q->p, LINE);
    for (size_t i = 0; i < a->head_dim / KERNEL_TILE; i += 2) {
        _tile_zero(SUM_00);
        _tile_zero(SUM_01);
        _tile_loadd(WEIGHTS_0, s->values[i], LINE);
        _tile_loadd(WEIGHTS_1, s->values[i + 1], LINE);
        _tile_dpbf16ps(SUM_00, ROWS_0, WEIGHTS_0);
        _tile_dpbf16ps(SUM_01, ROWS_0, WEIGHTS_1);
        _tile_stored(SUM_00, q->sums[i], LINE);
        _tile_stored(SUM_01, q->sums[i + 1], LINE);
    }
    queries_in_memory(q);
}

/* Lane r: all lanes of rows[r], folded in halves. Each step folds two rows into one vector. */
#define FOLD_ROWS(name, op)                                                                        \
    INLINE __m512 name(const __m512 rows[GROUP_ROWS])                                              \
    {                                                                                              \
        const __m512i in_order =                                                                   \
            _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);               \
        __m512 v[8];                                                                               \
        for (size_t r = 0; r < 8; r++)                                                             \
            v[r] = op(_mm512_shuffle_f32x4(rows[r], rows[r + 8], 0x44),                            \
                      _mm512_shuffle_f32x4(rows[r], rows[r + 8], 0xee));                           \
        for (size_t r = 0; r < 4; r++)                                                             \
            v[r] = op(_mm512_shuffle_f32x4(v[r], v[r + 4], 0x88),                                  \
                      _mm512_shuffle_f32x4(v[r], v[r + 4], 0xdd));                                 \
        for (size_t r = 0; r < 2; r++)                                                             \
            v[r] = op(_mm512_shuffle_ps(v[r], v[r + 2], 0x44),                                     \
                      _mm512_shuffle_ps(v[r], v[r + 2], 0xee));                                    \
        v[0] = op(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));       \
        return _mm512_permutexvar_ps(in_order, v[0]);                                              \
    }
FOLD_ROWS(fold_max, _mm512_max_ps)
FOLD_ROWS(fold_sum, _mm512_add_ps)

/* Sixteen floats as bf16, rounded to the nearest. */
INLINE void store_bf16(int16_t *to, __m512 x)
{
    __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    _mm256_storeu_si256((__m256i *)(void *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

/* The keys that query j sees, 16 at a time. */
INLINE __mmask16 seen_keys(uint8_t n_keys, size_t half)
{
    return (__mmask16)(((1ull << n_keys) - 1) >> (16 * half));
}

/* Online softmax, from scores to p: max, sum and correction go on to this page's. The rows behind n
 * come along without a key: their numbers are of no use. */
INLINE void weigh_queries(const uint8_t *n_keys, size_t n, struct queries *q)
{
    __m512 rows[GROUP_ROWS];
    for (size_t j = 0; j < GROUP_ROWS; j++) {
        __m512 masked[2];
        for (size_t i = 0; i < 2; i++) {
            masked[i] =
                _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), j < n ? seen_keys(n_keys[j], i) : 0,
                                   _mm512_load_ps(q->scores[i][j]));
            _mm512_store_ps(q->scores[i][j], masked[i]);
        }
        rows[j] = _mm512_max_ps(masked[0], masked[1]);
    }
    __m512 old = _mm512_load_ps(q->max);
    __m512 max = _mm512_max_ps(fold_max(rows), old);
    __m512 correction = exp_512(_mm512_sub_ps(old, max));
    _mm512_store_ps(q->max, max);
    _mm512_store_ps(q->correction, correction);
    for (size_t j = 0; j < GROUP_ROWS; j++) {
        rows[j] = _mm512_setzero_ps();
        for (size_t i = 0; i < 2; i++) {
            __m512 e =
                exp_512(_mm512_sub_ps(_mm512_load_ps(q->scores[i][j]), _mm512_set1_ps(q->max[j])));
            e = _mm512_maskz_mov_ps(j < n ? seen_keys(n_keys[j], i) : 0, e);
            rows[j] = _mm512_add_ps(rows[j], e);
            store_bf16(&q->p[j][16 * i], e);
        }
    }
    _mm512_store_ps(q->sum, _mm512_fmadd_ps(_mm512_load_ps(q->sum), correction, fold_sum(rows)));
}

INLINE void load_queries(const struct attend_page *a, size_t i, size_t n, struct queries *q)
{
    for (size_t j = 0; j < GROUP_ROWS; j++) {
        const float *state = a->state + (i + j) * ATTEND_STATE(a->head_dim);
        q->max[j] = j < n ? state[0] : 0;
        q->sum[j] = j < n ? state[1] : 0;
        for (size_t d = 0; d < a->head_dim; d += 32) {
            if (j < n)
                block_to_bf16(a->q + (i + j) * a->q_stride + d, q->q[d / 32][j]);
            else
                memset(q->q[d / 32][j], 0, sizeof(q->q[0][0]));
        }
    }
}

INLINE void store_queries(const struct attend_page *a, size_t i, size_t n, const struct queries *q)
{
    for (size_t j = 0; j < n; j++) {
        float *state = a->state + (i + j) * ATTEND_STATE(a->head_dim);
        __m512 correction = _mm512_set1_ps(q->correction[j]);
        state[0] = q->max[j];
        state[1] = q->sum[j];
        for (size_t d = 0; d < a->head_dim; d += KERNEL_TILE)
            _mm512_storeu_ps(state + 2 + d,
                             _mm512_fmadd_ps(_mm512_loadu_ps(state + 2 + d), correction,
                                             _mm512_load_ps(q->sums[d / KERNEL_TILE][j])));
    }
}

INLINE size_t attend_queries(const struct attend_page *a, const struct pairs *s, size_t i,
                             size_t n_tokens)
{
    struct queries q;
    size_t n = x86_seeing_queries(a, i, GROUP_ROWS);
    (void)n_tokens;
    load_queries(a, i, n, &q);
    score_queries(a, s, &q);
    weigh_queries(a->n_keys + i, n, &q);
    sum_values(a, s, &q);
    store_queries(a, i, n, &q);
    return n;
}

static const struct products PROMPT = {
    to_bf16, {matmul_q8, matmul_q4, matmul_q4_min}, KERNEL_MOST_UNIT_ROWS};
const struct kernels KERNELS_AMX_BF16 = X86_TABLE("amx-bf16", amx_matmul_q8, amx_matmul_q4,
                                                  amx_matmul_q4_min, &PROMPT, false, attend_prompt);
#endif
