/* Float products through OpenBLAS: the portable GEMM. See kernels.h. */
#include "engine/kernels/kernels.h"

#include <cblas.h>

void kernel_matmul_f32(const float *x, size_t x_stride, const float *w, size_t n_in, size_t n_out,
                       float *out, size_t out_stride, bool accumulate)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, KERNEL_F32_ROWS, (blasint)n_out,
                (blasint)n_in, 1.0f, x, (blasint)x_stride, w, (blasint)n_in,
                accumulate ? 1.0f : 0.0f, out, (blasint)out_stride);
}
