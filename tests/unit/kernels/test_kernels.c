/* Every kernel of every table this CPU can run (and AVX-VNNI, AVX-512 and AMX emulated) against
 * scalar.c, bit for bit, on random and edge shapes; and scalar.c against plain arithmetic in
 * double. */
#include "engine/base/half.h"
#include "engine/base/mem.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
extern const struct kernels KERNELS_AVXVNNI_EMULATED;
extern const struct kernels KERNELS_AVX512_EMULATED;
extern const struct kernels KERNELS_AVX512_BF16_EMULATED;
extern const struct kernels KERNELS_AMX_BF16_EMULATED;
#endif
#define MOST_TABLES (KERNELS_MOST + 4)

static uint64_t seed = 1;

static uint32_t random_bits(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static float random_float(float scale)
{
    return ((float)random_bits() / 2147483648.0f - 1.0f) * scale;
}

/* Mostly small numbers and now and then a large one, as activations are. */
static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(random_bits() % 50 ? 1.0f : 40.0f);
}

static size_t tables(const struct kernels *list[MOST_TABLES])
{
    const struct kernels *available[KERNELS_MOST];
    size_t n = 0;
    size_t n_available = kernels_available(available);
    for (size_t i = 1; i < n_available; i++)
        list[n++] = available[i];
#if defined(__x86_64__)
    if (n_available >= 2) {
        list[n++] = &KERNELS_AVXVNNI_EMULATED;
#if defined(HAVE_SIMDE)
        list[n++] = &KERNELS_AVX512_EMULATED;
        list[n++] = &KERNELS_AVX512_BF16_EMULATED;
        list[n++] = &KERNELS_AMX_BF16_EMULATED;
#endif
    }
#endif
    return n;
}

#define FOR_EACH_TABLE(k)                                                                          \
    const struct kernels *list_[MOST_TABLES];                                                      \
    size_t n_tables_ = tables(list_);                                                              \
    const struct kernels *k = n_tables_ ? list_[0] : NULL;                                         \
    for (size_t i_ = 0; i_ < n_tables_; k = list_[++i_ < n_tables_ ? i_ : 0])

static const size_t LENGTHS[] = {1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 172, 576, 1689};
#define N_LENGTHS (sizeof(LENGTHS) / sizeof(LENGTHS[0]))
#define MAX_LENGTH 2048

static void rmsnorm_gives_the_same_bits(void **state)
{
    float x[MAX_LENGTH];
    float weight[MAX_LENGTH];
    float expected[MAX_LENGTH];
    float got[MAX_LENGTH];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; i < N_LENGTHS; i++) {
            size_t n = LENGTHS[i];
            fill(x, n);
            fill(weight, n);
            KERNELS_SCALAR.rmsnorm(x, weight, n, n + i % 2, 1e-5f, expected);
            k->rmsnorm(x, weight, n, n + i % 2, 1e-5f, got);
            assert_memory_equal(got, expected, n * sizeof(float));
        }
    }
}

static void rmsnorm_is_the_formula(void **state)
{
    float x[100];
    float weight[100];
    float out[100];
    double sum = 0;
    (void)state;
    fill(x, 100);
    fill(weight, 100);
    for (int i = 0; i < 100; i++)
        sum += (double)x[i] * x[i];
    KERNELS_SCALAR.rmsnorm(x, weight, 100, 90, 1e-5f, out);
    for (int i = 0; i < 100; i++)
        assert_true(fabs(out[i] - x[i] / sqrt(sum / 90 + 1e-5) * weight[i]) < 1e-4);
}

/* Whether the table's blocks are two digits, as kernels.h says. */
static bool has_digits(const struct kernels *k)
{
    return strncmp(k->name, "avx512", 6) == 0 || strncmp(k->name, "amx", 3) == 0;
}

/* Where input i of a block lies in pairs, as kernels.h says. */
static size_t place(size_t i)
{
    return i % 4 == 1 ? i + 1 : i % 4 == 2 ? i - 1 : i;
}

static void pairs_to_digits(int16_t *q, size_t n_blocks)
{
    for (size_t b = 0; b < n_blocks; b++, q += KERNEL_BLOCK) {
        int8_t digits[2][KERNEL_BLOCK];
        for (size_t i = 0; i < KERNEL_BLOCK; i++) {
            int v = q[place(i)];
            digits[0][i] = (int8_t)((v + 8) >> 4);
            digits[1][i] = (int8_t)(v - 16 * digits[0][i]);
        }
        memcpy(q, digits, sizeof(digits));
    }
}

struct quantized {
    int16_t q[MAX_LENGTH / KERNEL_BLOCK][KERNEL_BLOCK];
    float scale[MAX_LENGTH / KERNEL_BLOCK];
    int32_t sum[MAX_LENGTH / KERNEL_BLOCK];
};

static void quantize_gives_the_same_bits(void **state)
{
    static struct quantized expected;
    static struct quantized got;
    float x[MAX_LENGTH];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; i < 2 * N_LENGTHS; i++) {
            size_t n = LENGTHS[i / 2];
            bool coarse = i % 2;
            fill(x, n);
            if (i % 3 == 0)
                memset(x, 0, n * sizeof(float)); /* a block of zeros has scale 0 */
            memset(&expected, 7, sizeof(expected));
            memset(&got, 7, sizeof(got));
            KERNELS_SCALAR.products.quantize(x, n, coarse, expected.q[0], expected.scale,
                                             expected.sum);
            if (has_digits(k))
                pairs_to_digits(expected.q[0], (n + KERNEL_BLOCK - 1) / KERNEL_BLOCK);
            k->products.quantize(x, n, coarse, got.q[0], got.scale, got.sum);
            assert_memory_equal(&got, &expected, sizeof(got));
        }
    }
}

static void quantize_keeps_the_value(void **state)
{
    float x[KERNEL_BLOCK];
    int16_t q[KERNEL_BLOCK];
    float scale;
    int32_t sum;
    (void)state;
    for (int round = 0; round < 2000; round++) {
        int32_t total = 0;
        int step = round % 2 ? KERNEL_Q_COARSE_STEP : 1;
        fill(x, KERNEL_BLOCK);
        KERNELS_SCALAR.products.quantize(x, KERNEL_BLOCK, step > 1, q, &scale, &sum);
        for (size_t i = 0; i < KERNEL_BLOCK; i++) {
            int16_t v = q[place(i)];
            assert_true(fabsf((float)v * scale - x[i]) <= 0.51f * (float)step * scale);
            assert_int_equal(v % step, 0);
            assert_int_not_equal(v, INT16_MIN);
            total += v;
        }
        assert_int_equal(total, sum);
    }
}

/* A product of random weights and activations in one layout. */
struct product {
    size_t n_blocks, n_tiles, n_rows, stride;
    size_t tile_bytes;
    uint8_t *tiles;
    struct quantized_rows x;
    float *expected;
    float *got;
};

static void product_open(struct product *p, enum kernel_layout layout, size_t n_blocks,
                         size_t n_tiles, size_t n_rows, size_t extra, bool coarse)
{
    size_t block_bytes = kernel_block_bytes(layout);
    size_t weight_bytes = kernel_weight_bytes(layout);
    *p = (struct product){.n_blocks = n_blocks,
                          .n_tiles = n_tiles,
                          .n_rows = n_rows,
                          .stride = n_blocks + extra,
                          .tile_bytes = kernel_tile_bytes(layout, n_blocks)};
    p->tiles = mem_alloc_aligned(n_tiles * p->tile_bytes);
    for (size_t t = 0; t < n_tiles; t++) {
        for (size_t b = 0; b < n_blocks; b++) {
            uint8_t *block = p->tiles + t * p->tile_bytes + b * block_bytes;
            for (size_t i = 0; i < weight_bytes; i++)
                block[i] =
                    random_bits() % 20 ? (uint8_t)random_bits() : 0x80; /* the extreme -128 */
            for (size_t i = weight_bytes; i < block_bytes; i += 2)
                *(uint16_t *)(void *)(block + i) = float_to_half(random_float(0.01f));
        }
    }
    float *row = mem_array(n_blocks * KERNEL_BLOCK, sizeof(float));
    p->x = (struct quantized_rows){
        .q = mem_calloc(n_rows * p->stride, KERNEL_BLOCK * sizeof(int16_t)),
        .scale = mem_calloc(n_rows * p->stride, sizeof(float)),
        .sum = mem_calloc(n_rows * p->stride, sizeof(int32_t)),
        .stride = p->stride,
        .coarse = coarse,
    };
    for (size_t r = 0; r < n_rows; r++) {
        fill(row, n_blocks * KERNEL_BLOCK);
        KERNELS_SCALAR.products.quantize(row, n_blocks * KERNEL_BLOCK, coarse,
                                         p->x.q + r * p->stride * KERNEL_BLOCK,
                                         p->x.scale + r * p->stride, p->x.sum + r * p->stride);
    }
    mem_free(row);
    size_t n_out = n_rows * n_tiles * KERNEL_TILE;
    p->expected = mem_array(n_out, sizeof(float));
    p->got = mem_array(n_out, sizeof(float));
    fill(p->expected, n_out); /* what an accumulating product adds to */
    memcpy(p->got, p->expected, n_out * sizeof(float));
}

static void product_close(struct product *p)
{
    mem_free(p->tiles);
    mem_free(p->x.q);
    mem_free(p->x.scale);
    mem_free(p->x.sum);
    mem_free(p->expected);
    mem_free(p->got);
}

/* The activations as table k holds them, after they were used as scalar.c does. */
static void product_give_to(struct product *p, const struct kernels *k)
{
    if (has_digits(k))
        pairs_to_digits(p->x.q, p->n_rows * p->stride);
}

static struct matmul product_matmul(const struct product *p, float *out, bool accumulate)
{
    return (struct matmul){
        .tiles = p->tiles,
        .tile_bytes = p->tile_bytes,
        .n_blocks = p->n_blocks,
        .x = &p->x,
        .row_end = p->n_rows,
        .tile_end = p->n_tiles,
        .out = out,
        .out_stride = p->n_tiles * KERNEL_TILE,
        .accumulate = accumulate,
    };
}

static void check_matmul_of(enum kernel_layout layout, bool coarse)
{
    static const size_t ROWS[] = {1, 2, 3, 4, 5, 7, 8, 9, 23, 16, 64, 67, 130};
    static const size_t N_BLOCKS[] = {1, 4, 7, 3, 6, 2, 5, 1, 4, 17, 18, 40, 3};
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++) {
            struct product p;
            product_open(&p, layout, N_BLOCKS[i], 1 + i % 3, ROWS[i], i % 2, coarse);
            struct matmul expected = product_matmul(&p, p.expected, i % 2);
            struct matmul got = product_matmul(&p, p.got, i % 2);
            KERNELS_SCALAR.products.matmul[layout](&expected);
            product_give_to(&p, k);
            k->products.matmul[layout](&got);
            assert_memory_equal(p.got, p.expected,
                                p.n_rows * p.n_tiles * KERNEL_TILE * sizeof(float));
            product_close(&p);
        }
    }
}

static void check_matmul(enum kernel_layout layout)
{
    check_matmul_of(layout, false);
    check_matmul_of(layout, true);
}

static void matmul_q8_gives_the_same_bits(void **state)
{
    (void)state;
    check_matmul(KERNEL_Q8);
}

static void matmul_q4_gives_the_same_bits(void **state)
{
    (void)state;
    check_matmul(KERNEL_Q4);
}

static void matmul_q4_min_gives_the_same_bits(void **state)
{
    (void)state;
    check_matmul(KERNEL_Q4_MIN);
}

static void check_rows(const struct product *p, const struct products *products,
                       enum kernel_layout layout)
{
    struct matmul all = product_matmul(p, p->expected, false);
    products->matmul[layout](&all);
    for (size_t r = 0; r < p->n_rows; r++) {
        for (size_t t = 0; t < p->n_tiles; t++) {
            struct matmul one = all;
            one.row_begin = r;
            one.row_end = r + 1;
            one.tile_begin = t;
            one.tile_end = t + 1;
            one.out = p->got;
            products->matmul[layout](&one);
            assert_memory_equal(p->got, p->expected + r * all.out_stride + t * KERNEL_TILE,
                                KERNEL_TILE * sizeof(float));
        }
    }
}

/* Rows as the products for prompts want them. */
static void product_give_to_prompt(struct product *p, const struct products *products)
{
    float row[MAX_LENGTH];
    for (size_t r = 0; r < p->n_rows; r++) {
        size_t at = r * p->stride;
        fill(row, p->n_blocks * KERNEL_BLOCK);
        products->quantize(row, p->n_blocks * KERNEL_BLOCK, p->x.coarse, p->x.q + at * KERNEL_BLOCK,
                           p->x.scale + at, p->x.sum + at);
    }
}

/* The promise behind reproducible answers: a row alone, or in a batch, or in part of the tiles. */
static void a_row_does_not_depend_on_its_batch(void **state)
{
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (enum kernel_layout layout = 0; layout < KERNEL_LAYOUTS; layout++) {
            struct product p;
            for (int coarse = 0; coarse < 2; coarse++) {
                product_open(&p, layout, 5, 3, 11, 0, coarse);
                product_give_to(&p, k);
                check_rows(&p, &k->products, layout);
                product_close(&p);
            }
            if (!k->prompt)
                continue;
            product_open(&p, layout, 18, 3, 53, 1, false);
            product_give_to_prompt(&p, k->prompt);
            check_rows(&p, k->prompt, layout);
            product_close(&p);
        }
    }
}

/* Of row r and input j of a tile's block, as kernels.h says. */
static double weight(enum kernel_layout layout, const uint8_t *block, size_t r, size_t j)
{
    const uint16_t *scale = (const uint16_t *)(const void *)(block + kernel_weight_bytes(layout));
    double d = half_to_float(scale[r]);
    if (layout == KERNEL_Q8)
        return d * (int8_t)block[j / 4 * 64 + r * 4 + j % 4];
    uint8_t byte = block[j % 16 / 4 * 64 + r * 4 + j % 4];
    int nibble = j < 16 ? byte & 15 : byte >> 4;
    return layout == KERNEL_Q4 ? d * (nibble - 8)
                               : d * nibble + half_to_float(scale[KERNEL_TILE + r]);
}

/* Activations at the ends of their range and the largest weights: no integer overflows, and what a
 * float cannot hold is rounded in the same way. */
static void extremes_give_the_same_bits(void **state)
{
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (int i = 0; i < 2 * KERNEL_LAYOUTS; i++) {
            enum kernel_layout layout = (enum kernel_layout)(i / 2);
            bool coarse = i % 2;
            int16_t most = coarse ? KERNEL_Q_COARSE_STEP * KERNEL_Q_COARSE_MAX : KERNEL_Q_MAX;
            struct product p;
            product_open(&p, layout, 2, 1, 16, 0, coarse);
            for (size_t j = 0; j < p.n_rows * p.stride * KERNEL_BLOCK; j++)
                p.x.q[j] = (int16_t)(j / KERNEL_BLOCK % 2 ? most : -most);
            for (size_t b = 0; b < p.n_rows * p.stride; b++)
                p.x.sum[b] = (b % 2 ? most : -most) * KERNEL_BLOCK;
            memset(p.tiles, layout == KERNEL_Q8 ? 0x80 : 0xf0, kernel_weight_bytes(layout));
            struct matmul expected = product_matmul(&p, p.expected, false);
            struct matmul got = product_matmul(&p, p.got, false);
            KERNELS_SCALAR.products.matmul[layout](&expected);
            product_give_to(&p, k);
            k->products.matmul[layout](&got);
            assert_memory_equal(p.got, p.expected, p.n_rows * KERNEL_TILE * sizeof(float));
            product_close(&p);
        }
    }
}

static void matmul_is_the_product(void **state)
{
    (void)state;
    for (enum kernel_layout layout = 0; layout < KERNEL_LAYOUTS; layout++) {
        struct product p;
        product_open(&p, layout, 3, 2, 2, 0, false);
        struct matmul m = product_matmul(&p, p.got, false);
        KERNELS_SCALAR.products.matmul[layout](&m);
        for (size_t row = 0; row < 2; row++) {
            for (size_t o = 0; o < 2 * KERNEL_TILE; o++) {
                const uint8_t *tile = p.tiles + o / KERNEL_TILE * p.tile_bytes;
                size_t r = o % KERNEL_TILE;
                double sum = 0;
                for (size_t i = 0; i < p.n_blocks * KERNEL_BLOCK; i++) {
                    size_t b = i / KERNEL_BLOCK;
                    size_t j = i % KERNEL_BLOCK;
                    const int16_t *q = p.x.q + (row * p.stride + b) * KERNEL_BLOCK;
                    double x = q[place(j)] * (double)p.x.scale[row * p.stride + b];
                    const uint8_t *block = tile + b * kernel_block_bytes(layout);
                    sum += x * weight(layout, block, r, j);
                }
                assert_true(fabs(sum - p.got[row * m.out_stride + o]) < 1e-3 * (1 + fabs(sum)));
            }
        }
        product_close(&p);
    }
}

static float bf16_value(int16_t half)
{
    uint32_t bits = (uint32_t)(uint16_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void prompts_are_rounded_to_bf16(void **state)
{
    float x[MAX_LENGTH];
    int16_t q[MAX_LENGTH];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; k->prompt && i < N_LENGTHS; i++) {
            size_t n = LENGTHS[i];
            fill(x, n);
            memset(q, 7, sizeof(q));
            k->prompt->quantize(x, n, false, q, NULL, NULL);
            for (size_t j = 0; j < n; j++)
                assert_true(fabsf(bf16_value(q[j]) - x[j]) <= fabsf(x[j]) / 256);
            for (size_t j = n; j % KERNEL_BLOCK; j++)
                assert_int_equal(q[j], 0);
        }
    }
}

/* Weights are rounded to 8 bits of mantissa, sums are of floats. */
static void check_prompt_product(const struct product *p, enum kernel_layout layout,
                                 const float *before)
{
    for (size_t i = 0; i < p->n_rows * p->n_tiles * KERNEL_TILE; i++) {
        size_t row = i / (p->n_tiles * KERNEL_TILE);
        size_t out = i % (p->n_tiles * KERNEL_TILE);
        const uint8_t *tile = p->tiles + out / KERNEL_TILE * p->tile_bytes;
        double sum = before ? before[i] : 0;
        double size = fabs(sum);
        for (size_t j = 0; j < p->n_blocks * KERNEL_BLOCK; j++) {
            size_t b = j / KERNEL_BLOCK;
            double w = weight(layout, tile + b * kernel_block_bytes(layout), out % KERNEL_TILE,
                              j % KERNEL_BLOCK);
            double x = bf16_value(p->x.q[(row * p->stride + b) * KERNEL_BLOCK + j % KERNEL_BLOCK]);
            sum += w * x;
            size += fabs(w * x);
        }
        assert_true(fabs(sum - p->got[i]) <= size / 256);
    }
}

static void prompt_products_are_the_product(void **state)
{
    static const size_t ROWS[] = {1, 15, 16, 17, 33, 300};
    static const size_t N_BLOCKS[] = {1, 18, 7, 33, 16, 2};
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; k->prompt && i < 3 * sizeof(ROWS) / sizeof(ROWS[0]); i++) {
            struct product p;
            enum kernel_layout layout = (enum kernel_layout)(i % 3);
            product_open(&p, layout, N_BLOCKS[i / 3], 1 + i % 4, ROWS[i / 3], i % 2, false);
            product_give_to_prompt(&p, k->prompt);
            struct matmul m = product_matmul(&p, p.got, i % 2);
            k->prompt->matmul[layout](&m);
            check_prompt_product(&p, layout, i % 2 ? p.expected : NULL);
            product_close(&p);
        }
    }
}

#if defined(HAVE_SIMDE)
/* The order of kernels.h is that of the instruction. */
static void prompt_products_of_avx512_have_their_order(void **state)
{
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (enum kernel_layout layout = 0; layout < KERNEL_LAYOUTS; layout++) {
            const struct products *emulated = KERNELS_AVX512_BF16_EMULATED.prompt;
            struct product p;
            if (strcmp(k->name, "avx512-bf16") != 0)
                continue;
            product_open(&p, layout, 33, 3, 31, 1, false);
            product_give_to_prompt(&p, k->prompt);
            struct matmul expected = product_matmul(&p, p.expected, true);
            struct matmul got = product_matmul(&p, p.got, true);
            emulated->matmul[layout](&expected);
            k->prompt->matmul[layout](&got);
            assert_memory_equal(p.got, p.expected,
                                p.n_rows * p.n_tiles * KERNEL_TILE * sizeof(float));
            product_close(&p);
        }
    }
}
#endif

static void silu_rope_and_halves_give_the_same_bits(void **state)
{
    float a[MAX_LENGTH];
    float b[MAX_LENGTH];
    float expected[MAX_LENGTH];
    float got[MAX_LENGTH];
    uint16_t half_expected[MAX_LENGTH];
    uint16_t half_got[MAX_LENGTH];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t i = 0; i < N_LENGTHS; i++) {
            size_t n = LENGTHS[i];
            fill(a, n);
            fill(b, n);
            a[0] = i % 2 ? 1000.0f : -1000.0f; /* past where exp would overflow */
            KERNELS_SCALAR.silu_mul(a, b, n, expected);
            k->silu_mul(a, b, n, got);
            assert_memory_equal(got, expected, n * sizeof(float));

            memcpy(expected, a, n * sizeof(float));
            memcpy(got, a, n * sizeof(float));
            KERNELS_SCALAR.rope(expected, b, b + n / 2, n / 2);
            k->rope(got, b, b + n / 2, n / 2);
            assert_memory_equal(got, expected, n * sizeof(float));

            a[0] = 1e-6f; /* a subnormal half */
            KERNELS_SCALAR.float_to_half(a, n, half_expected);
            k->float_to_half(a, n, half_got);
            assert_memory_equal(half_got, half_expected, n * sizeof(uint16_t));
            KERNELS_SCALAR.half_to_float(half_got, n, expected);
            k->half_to_float(half_got, n, got);
            assert_memory_equal(got, expected, n * sizeof(float));
        }
    }
}

/* Two pages, the second part-filled, for queries that see different numbers of keys. */
#define MOST_QUERIES 37 /* more than two tiles of AMX */
struct attention {
    size_t head_dim, n_q;
    float q[MOST_QUERIES * 128];
    float keys[2][128 * KERNEL_PAGE_TOKENS];
    float values[2][128 * KERNEL_PAGE_TOKENS];
    uint8_t n_keys[2][MOST_QUERIES];
    float state[MOST_QUERIES * ATTEND_STATE(128)];
};

/* Up to one more than a tile of AMX holds each count, then the most. */
static size_t more_queries(size_t n)
{
    return n == 17 ? MOST_QUERIES : n + 1;
}

static void attention_open(struct attention *a, size_t head_dim, size_t n_q)
{
    a->head_dim = head_dim;
    a->n_q = n_q;
    fill(a->q, n_q * head_dim);
    for (int page = 0; page < 2; page++) {
        fill(a->keys[page], head_dim * KERNEL_PAGE_TOKENS);
        fill(a->values[page], head_dim * KERNEL_PAGE_TOKENS);
        for (size_t i = 0; i < n_q; i++)
            a->n_keys[page][i] = page ? (uint8_t)(i * 6 % KERNEL_PAGE_TOKENS) : KERNEL_PAGE_TOKENS;
    }
    /* what no query sees may be anything */
    for (size_t d = 0; d < head_dim; d++)
        a->keys[1][d * KERNEL_PAGE_TOKENS + 31] = a->values[1][31 * head_dim + d] = NAN;
}

typedef void attend_fn(const struct attend_page *a);

/* Queries [begin, end). */
static void attention_run(struct attention *a, attend_fn *attend, size_t begin, size_t end,
                          bool is_half)
{
    static uint16_t halves[2][2][128 * KERNEL_PAGE_TOKENS];
    memset(a->state, 0, sizeof(a->state));
    for (size_t i = begin; i < end; i++)
        a->state[i * ATTEND_STATE(a->head_dim)] = -INFINITY;
    for (int page = 0; page < 2; page++) {
        size_t n = a->head_dim * KERNEL_PAGE_TOKENS;
        KERNELS_SCALAR.float_to_half(a->keys[page], n, halves[page][0]);
        KERNELS_SCALAR.float_to_half(a->values[page], n, halves[page][1]);
        attend(&(struct attend_page){
            .q = a->q + begin * a->head_dim,
            .q_stride = a->head_dim,
            .n_q = end - begin,
            .head_dim = a->head_dim,
            .keys = is_half ? (const void *)halves[page][0] : a->keys[page],
            .values = is_half ? (const void *)halves[page][1] : a->values[page],
            .is_half = is_half,
            .n_keys = a->n_keys[page] + begin,
            .state = a->state + begin * ATTEND_STATE(a->head_dim),
        });
    }
}

static void attend_gives_the_same_bits(void **state)
{
    static struct attention a;
    static float expected[sizeof(a.state) / sizeof(float)];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        static const size_t DIMS[] = {4, 8, 20, 64, 72, 128};
        for (size_t i = 0; i < 6; i++) {
            for (size_t n_q = 1; n_q <= MOST_QUERIES; n_q = more_queries(n_q)) {
                attention_open(&a, DIMS[i], n_q);
                attention_run(&a, KERNELS_SCALAR.attend, 0, n_q, i % 2);
                memcpy(expected, a.state, sizeof(a.state));
                attention_run(&a, k->attend, 0, n_q, i % 2);
                assert_memory_equal(a.state, expected, n_q * ATTEND_STATE(DIMS[i]) * sizeof(float));
            }
        }
    }
}

/* Against the formula in double: share of the size of what is added up. */
static void check_attention(const struct attention *a, double bound)
{
    size_t dim = a->head_dim;
    for (size_t i = 0; i < a->n_q; i++) {
        double score[64];
        double max = -1e30;
        double sum = 0;
        size_t n = KERNEL_PAGE_TOKENS + a->n_keys[1][i];
        for (size_t t = 0; t < n; t++) {
            score[t] = 0;
            for (size_t d = 0; d < dim; d++)
                score[t] += (double)a->q[i * dim + d] * a->keys[t / 32][d * 32 + t % 32];
            max = fmax(max, score[t]);
        }
        for (size_t t = 0; t < n; t++)
            sum += exp(score[t] - max);
        for (size_t d = 0; d < dim; d++) {
            double out = 0;
            double size = 1;
            for (size_t t = 0; t < n; t++) {
                double term = exp(score[t] - max) / sum * a->values[t / 32][t % 32 * dim + d];
                out += term;
                size += fabs(term);
            }
            const float *s = a->state + i * ATTEND_STATE(dim);
            assert_true(fabs(out - s[2 + d] / s[1]) < bound * size);
        }
    }
}

static void attend_is_softmax_times_values(void **state)
{
    static struct attention a;
    (void)state;
    attention_open(&a, 16, 5);
    attention_run(&a, KERNELS_SCALAR.attend, 0, 5, false);
    check_attention(&a, 1e-3);
}

static void round_all(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bits &= 0xffff0000;
        memcpy(&x[i], &bits, sizeof(bits));
    }
}

/* Of what is bf16 already only the softmax is rounded. */
static void prompts_attend_in_bf16(void **state)
{
    static struct attention a;
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t n_q = 1; k->attend_prompt && n_q <= MOST_QUERIES; n_q = more_queries(n_q)) {
            attention_open(&a, n_q == 5 ? 24 : 32 * (1 + n_q % 4), n_q);
            round_all(a.q, a.n_q * a.head_dim);
            for (int page = 0; page < 2; page++) {
                round_all(a.keys[page], a.head_dim * KERNEL_PAGE_TOKENS);
                round_all(a.values[page], a.head_dim * KERNEL_PAGE_TOKENS);
            }
            attention_run(&a, k->attend_prompt, 0, a.n_q, n_q % 2);
            check_attention(&a, 1.0 / 256);
        }
    }
}

static void a_query_of_a_prompt_does_not_depend_on_the_others(void **state)
{
    static struct attention a;
    static float expected[sizeof(a.state) / sizeof(float)];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        if (!k->attend_prompt)
            continue;
        attention_open(&a, 64, MOST_QUERIES);
        attention_run(&a, k->attend_prompt, 0, MOST_QUERIES, true);
        memcpy(expected, a.state, sizeof(a.state));
        for (size_t i = 0; i < MOST_QUERIES; i++) {
            size_t at = i * ATTEND_STATE(64);
            attention_run(&a, k->attend_prompt, i, i + 1, true);
            assert_memory_equal(a.state + at, expected + at, ATTEND_STATE(64) * sizeof(float));
        }
    }
}

#if defined(HAVE_SIMDE)
static void prompts_attend_in_the_order_of_avx512(void **state)
{
    static struct attention a;
    static float expected[sizeof(a.state) / sizeof(float)];
    (void)state;
    FOR_EACH_TABLE(k)
    {
        for (size_t n_q = 1; n_q <= MOST_QUERIES; n_q = more_queries(n_q)) {
            if (strcmp(k->name, "avx512-bf16") != 0)
                continue;
            attention_open(&a, 64, n_q);
            attention_run(&a, KERNELS_AVX512_BF16_EMULATED.attend_prompt, 0, n_q, n_q % 2);
            memcpy(expected, a.state, sizeof(a.state));
            attention_run(&a, k->attend_prompt, 0, n_q, n_q % 2);
            assert_memory_equal(a.state, expected, n_q * ATTEND_STATE(64) * sizeof(float));
        }
    }
}
#endif

static void exp_is_exp(void **state)
{
    (void)state;
    for (float x = -86; x < 87; x += 0.0137f)
        assert_true(fabs(lane_exp(x) / exp((double)x) - 1) < 3e-7);
    assert_true(lane_exp(-1e9f) < 1e-37f && lane_exp(-INFINITY) < 1e-37f);
    assert_true(isfinite(lane_exp(1e9f)));
}

static void select_refuses_an_unknown_name(void **state)
{
    const struct kernels *k = NULL;
    struct error err;
    (void)state;
    assert_int_equal(kernels_select("scalar", &k, &err), 0);
    assert_ptr_equal(k, &KERNELS_SCALAR);
    assert_true(kernels_select("mmx", &k, &err) < 0);
    assert_non_null(strstr(err.message, "mmx"));
    assert_ptr_equal(k, &KERNELS_SCALAR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm_gives_the_same_bits),
        cmocka_unit_test(rmsnorm_is_the_formula),
        cmocka_unit_test(quantize_gives_the_same_bits),
        cmocka_unit_test(quantize_keeps_the_value),
        cmocka_unit_test(matmul_q8_gives_the_same_bits),
        cmocka_unit_test(matmul_q4_gives_the_same_bits),
        cmocka_unit_test(matmul_q4_min_gives_the_same_bits),
        cmocka_unit_test(extremes_give_the_same_bits),
        cmocka_unit_test(a_row_does_not_depend_on_its_batch),
        cmocka_unit_test(matmul_is_the_product),
        cmocka_unit_test(prompts_are_rounded_to_bf16),
        cmocka_unit_test(prompt_products_are_the_product),
#if defined(HAVE_SIMDE)
        cmocka_unit_test(prompt_products_of_avx512_have_their_order),
#endif
        cmocka_unit_test(silu_rope_and_halves_give_the_same_bits),
        cmocka_unit_test(attend_gives_the_same_bits),
        cmocka_unit_test(attend_is_softmax_times_values),
#if defined(HAVE_SIMDE)
        cmocka_unit_test(prompts_attend_in_the_order_of_avx512),
#endif
        cmocka_unit_test(prompts_attend_in_bf16),
        cmocka_unit_test(a_query_of_a_prompt_does_not_depend_on_the_others),
        cmocka_unit_test(exp_is_exp),
        cmocka_unit_test(select_refuses_an_unknown_name),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
