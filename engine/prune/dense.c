/* Panels of a product. See dense.h. */
#include "engine/prune/dense.h"

#include "engine/base/system.h"
#include "engine/prune/prune.h"

#include <cblas.h>
#include <string.h>

#define PANEL_ROWS 128

const char *prune_blas_core(void)
{
#if defined(__x86_64__)
    /* what it takes for an Intel CPU and an AMD CPU that it has no name for */
    const char *chosen = openblas_get_corename();
    if (strcmp(chosen, "Prescott") != 0 && strcmp(chosen, "Barcelona") != 0)
        return NULL;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "Haswell";
#endif
    return NULL;
}

void blas_begin(void)
{
    openblas_set_num_threads((int)system_cpu_count());
}

void blas_end(void)
{
    openblas_set_num_threads(1);
}

/* Rows [unit * PANEL_ROWS, ...) of c. */
static void multiply_panel(void *context, unsigned member, size_t unit)
{
    const struct product *p = context;
    size_t row = unit * PANEL_ROWS;
    size_t n_rows = p->m - row < PANEL_ROWS ? p->m - row : PANEL_ROWS;
    size_t column = p->upper ? row : 0;
    cblas_sgemm(CblasRowMajor, p->a_turned ? CblasTrans : CblasNoTrans,
                p->b_turned ? CblasTrans : CblasNoTrans, (blasint)n_rows, (blasint)(p->n - column),
                (blasint)p->k, p->alpha, p->a + row * (p->a_turned ? 1 : p->a_stride),
                (blasint)p->a_stride, p->b + column * (p->b_turned ? p->b_stride : 1),
                (blasint)p->b_stride, p->beta, p->c + row * p->c_stride + column,
                (blasint)p->c_stride);
}

void dense_product(struct team *team, const struct product *product)
{
    struct product p = *product;
    size_t n_units = (p.m + PANEL_ROWS - 1) / PANEL_ROWS;
    if (team && n_units > 1) {
        team_begin(team);
        team_for(team, n_units, multiply_panel, &p);
        team_end(team);
        return;
    }
    for (size_t unit = 0; unit < n_units; unit++)
        multiply_panel(&p, 0, unit);
}
