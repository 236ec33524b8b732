/* Float products through OpenBLAS: the portable GEMM. See kernels.h.
 *
 * sgemm's micro-kernels hold a few columns of (its, column-major) C in vector registers, and
 * columns in different places of a group may be added up in different orders (Haswell: groups of
 * 6). So the batch's rows are not its columns but its C's rows: the 16 lanes of a vector, which all
 * go through the same instructions. What differs by column then differs by weight, the same way
 * each time. */
#include "engine/kernels/kernels.h"

#include <cblas.h>

#define COLUMNS 256 /* outputs of one call of sgemm: the lanes of so many are on the stack */

static void store_lanes(const float *lanes, size_t n_out, float *out, size_t out_stride,
                        bool accumulate)
{
    for (size_t row = 0; row < KERNEL_F32_ROWS; row++) {
        float *o = out + row * out_stride;
        for (size_t i = 0; i < n_out; i++)
            o[i] = (accumulate ? o[i] : 0.0f) + lanes[i * KERNEL_F32_ROWS + row];
    }
}

void kernel_matmul_f32(const float *x, size_t x_stride, const float *w, size_t n_in, size_t n_out,
                       float *out, size_t out_stride, bool accumulate)
{
    float lanes[COLUMNS * KERNEL_F32_ROWS];
    for (size_t begin = 0; begin < n_out; begin += COLUMNS) {
        size_t n = n_out - begin < COLUMNS ? n_out - begin : COLUMNS;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)n, KERNEL_F32_ROWS,
                    (blasint)n_in, 1.0f, w + begin * n_in, (blasint)n_in, x, (blasint)x_stride,
                    0.0f, lanes, KERNEL_F32_ROWS);
        store_lanes(lanes, n, out + begin, out_stride, accumulate);
    }
}
