/* Matrix products of a pass, cut into units. See forward_internal.h. */
#include "engine/forward/forward_internal.h"

void linear_prepare(const struct forward *f, const float *x, size_t n, size_t row, size_t block,
                    const struct quantized_rows *quantized)
{
    if (!f->model->quantized)
        return;
    size_t at = row * quantized->stride + block;
    f->kernels->quantize(x, n, quantized->q + at * KERNEL_BLOCK, quantized->scale + at,
                         quantized->sum + at);
}

static void run_f32(const struct linear *l)
{
    const float *w =
        (const float *)(const void *)(l->w->data + l->range.tile_begin * l->w->tile_bytes);
    for (size_t row = l->range.row_begin; row < l->range.row_end; row += KERNEL_F32_ROWS)
        kernel_matmul_f32(l->x + row * l->x_stride, l->x_stride, w, l->w->n_in,
                          (l->range.tile_end - l->range.tile_begin) * KERNEL_TILE,
                          l->out + (row - l->range.row_begin) * l->out_stride, l->out_stride,
                          l->accumulate);
}

void linear_run(const struct forward *f, const struct linear *l)
{
    if (l->w->type == MATRIX_F32) {
        run_f32(l);
        return;
    }
    const struct matmul m = {
        .tiles = l->w->data,
        .tile_bytes = l->w->tile_bytes,
        .n_blocks = l->w->n_blocks,
        .x = l->quantized,
        .row_begin = l->range.row_begin,
        .row_end = l->range.row_end,
        .tile_begin = l->range.tile_begin,
        .tile_end = l->range.tile_end,
        .out = l->out,
        .out_stride = l->out_stride,
        .accumulate = l->accumulate,
    };
    f->kernels->matmul[matrix_layout(l->w)](&m);
}

size_t unit_count(size_t n_rows, size_t n_tiles, size_t tiles)
{
    return ((n_rows + ROW_UNIT - 1) / ROW_UNIT) * ((n_tiles + tiles - 1) / tiles);
}

struct unit_range unit_at(size_t unit, size_t n_rows, size_t n_tiles, size_t tiles)
{
    size_t n_row_units = (n_rows + ROW_UNIT - 1) / ROW_UNIT;
    size_t row = unit % n_row_units * ROW_UNIT;
    size_t tile = unit / n_row_units * tiles;
    return (struct unit_range){
        .row_begin = row,
        .row_end = row + ROW_UNIT < n_rows ? row + ROW_UNIT : n_rows,
        .tile_begin = tile,
        .tile_end = tile + tiles < n_tiles ? tile + tiles : n_tiles,
    };
}
