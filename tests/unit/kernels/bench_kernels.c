/* How fast each kernel of each table is alone: one thread, its own CPU time, so that what else runs
 * disturbs little. `meson test --benchmark`; bench_kernels [part of a name]. */
#include "engine/base/mem.h"
#include "engine/kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUN_SECONDS 0.05
#define N_RUNS 7

struct work {
    void (*attend)(const struct attend_page *a);
    const struct products *products;
    struct matmul m;
    enum kernel_layout layout;
    struct attend_page page;
    float *x;
    size_t n;
    struct quantized_rows rows;
};

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Seconds of one call, the best of N_RUNS. */
static double seconds(void (*fn)(struct work *), struct work *w)
{
    double best = INFINITY;
    size_t n = 1;
    for (int run = 0; run < N_RUNS;) {
        double begin = cpu_seconds();
        for (size_t i = 0; i < n; i++)
            fn(w);
        double s = cpu_seconds() - begin;
        if (s < RUN_SECONDS) {
            n *= 2;
            continue;
        }
        best = fmin(best, s / (double)n);
        run++;
    }
    return best;
}

static void run_matmul(struct work *w)
{
    w->products->matmul[w->layout](&w->m);
}

static void run_attend(struct work *w)
{
    w->attend(&w->page);
}

static void run_quantize(struct work *w)
{
    w->products->quantize(w->x, w->n, w->rows.coarse, w->rows.q, w->rows.scale, w->rows.sum);
}

static float *random_floats(size_t n)
{
    float *x = mem_array(n, sizeof(*x));
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return x;
}

static void *fail_if_null(void *p)
{
    if (!p) {
        fputs("bench_kernels: out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static void bench_matmul(const char *name, const struct products *products,
                         enum kernel_layout layout, size_t n_in, size_t n_tiles, size_t n_rows)
{
    static const char *const NAMES[KERNEL_LAYOUTS] = {"q8", "q4", "q4_min"};
    size_t n_blocks = n_in / KERNEL_BLOCK;
    size_t tile_bytes = kernel_tile_bytes(layout, n_blocks);
    uint8_t *tiles = fail_if_null(mem_alloc_aligned(n_tiles * tile_bytes));
    float *x = fail_if_null(random_floats(n_rows * n_in));
    float *out = fail_if_null(mem_calloc(n_rows * n_tiles * KERNEL_TILE, sizeof(*out)));
    struct quantized_rows rows = {
        .q = fail_if_null(mem_alloc_aligned(n_rows * n_in * sizeof(*rows.q))),
        .scale = fail_if_null(mem_calloc(n_rows * n_blocks, sizeof(float))),
        .sum = fail_if_null(mem_calloc(n_rows * n_blocks, sizeof(int32_t))),
        .stride = n_blocks,
    };
    memset(tiles, 0x11, n_tiles * tile_bytes);
    for (size_t r = 0; r < n_rows; r++)
        products->quantize(x + r * n_in, n_in, rows.coarse, rows.q + r * n_in,
                           rows.scale + r * n_blocks, rows.sum + r * n_blocks);
    struct work w = {
        .products = products,
        .layout = layout,
        .m = {.tiles = tiles,
              .tile_bytes = tile_bytes,
              .n_blocks = n_blocks,
              .x = &rows,
              .row_end = n_rows,
              .tile_end = n_tiles,
              .out = out,
              .out_stride = n_tiles * KERNEL_TILE},
    };
    double s = seconds(run_matmul, &w);
    double ops = 2.0 * (double)(n_rows * n_in * n_tiles * KERNEL_TILE);
    printf("%-8s matmul_%-6s %4zu rows x %4zu x %4zu  %8.1f us  %7.1f GOP/s  %6.1f GB/s\n", name,
           NAMES[layout], n_rows, n_in, n_tiles * KERNEL_TILE, s * 1e6, ops / s / 1e9,
           (double)(n_tiles * tile_bytes) / s / 1e9);
    mem_free(tiles);
    mem_free(x);
    mem_free(out);
    mem_free(rows.q);
    mem_free(rows.scale);
    mem_free(rows.sum);
}

static void bench_attend(const struct kernels *k, size_t n_q, bool is_half, bool of_prompt)
{
    enum { HEAD_DIM = 64 };
    size_t n = (size_t)HEAD_DIM * KERNEL_PAGE_TOKENS;
    struct work w = {.attend = of_prompt ? k->attend_prompt : k->attend};
    float *q = fail_if_null(random_floats(n_q * HEAD_DIM));
    float *keys = fail_if_null(random_floats(n));
    float *values = fail_if_null(random_floats(n));
    if (is_half) {
        k->float_to_half(keys, n, (uint16_t *)keys);
        k->float_to_half(values, n, (uint16_t *)values);
    }
    float *state = fail_if_null(mem_calloc(n_q, ATTEND_STATE(HEAD_DIM) * sizeof(float)));
    uint8_t *n_keys = fail_if_null(mem_alloc(n_q));
    memset(n_keys, KERNEL_PAGE_TOKENS, n_q);
    w.page = (struct attend_page){.q = q,
                                  .q_stride = HEAD_DIM,
                                  .n_q = n_q,
                                  .head_dim = HEAD_DIM,
                                  .keys = keys,
                                  .values = values,
                                  .is_half = is_half,
                                  .n_keys = n_keys,
                                  .state = state};
    double s = seconds(run_attend, &w);
    printf("%-7s attend %3zu queries x page of %d %s  %8.2f us  %7.1f GFLOP/s\n",
           of_prompt ? "prompts" : k->name, n_q, HEAD_DIM, is_half ? "halves" : "floats", s * 1e6,
           4.0 * (double)(n_q * n) / s / 1e9);
    mem_free(q);
    mem_free(keys);
    mem_free(values);
    mem_free(state);
    mem_free(n_keys);
}

static void bench_quantize(const char *name, const struct products *products, size_t n)
{
    struct work w = {.products = products, .n = n, .x = fail_if_null(random_floats(n))};
    w.rows.q = fail_if_null(mem_calloc(n, sizeof(*w.rows.q)));
    w.rows.scale = fail_if_null(mem_calloc(n / KERNEL_BLOCK, sizeof(float)));
    w.rows.sum = fail_if_null(mem_calloc(n / KERNEL_BLOCK, sizeof(int32_t)));
    double s = seconds(run_quantize, &w);
    printf("%-7s quantize %5zu                       %8.3f us  %7.1f GB/s\n", name, n, s * 1e6,
           (double)n * sizeof(float) / s / 1e9);
    mem_free(w.x);
    mem_free(w.rows.q);
    mem_free(w.rows.scale);
    mem_free(w.rows.sum);
}

static void bench_products(const char *name, const struct products *products)
{
    static const size_t ROWS[] = {1, 2, 4, 16, 64, 256};
    for (enum kernel_layout layout = 0; layout < KERNEL_LAYOUTS; layout++) {
        for (size_t r = 0; r < sizeof(ROWS) / sizeof(ROWS[0]) && ROWS[r] <= products->unit_rows;
             r++) {
            bench_matmul(name, products, layout, 576, 4, ROWS[r]);
            bench_matmul(name, products, layout, 1536, 2, ROWS[r]);
        }
    }
    bench_quantize(name, products, KERNEL_BLOCK);
    bench_quantize(name, products, 576);
}

int main(int argc, char **argv)
{
    const struct kernels *tables[KERNELS_MOST];
    size_t n = kernels_available(tables);
    for (size_t i = 1; i < n; i++) {
        if (argc > 1 && strcmp(argv[1], tables[i]->name) != 0)
            continue;
        bench_products(tables[i]->name, &tables[i]->products);
        if (tables[i]->prompt)
            bench_products("prompts", tables[i]->prompt);
        for (int of_prompt = 0; of_prompt <= (tables[i]->attend_prompt != NULL); of_prompt++) {
            bench_attend(tables[i], 3, false, of_prompt);
            bench_attend(tables[i], 3, true, of_prompt);
            bench_attend(tables[i], 48, false, of_prompt);
            bench_attend(tables[i], 48, true, of_prompt);
            bench_attend(tables[i], 96, true, of_prompt);
        }
    }
    return 0;
}
