/* Matrix products of a pass, cut into units. See forward_internal.h. */
#include "engine/forward/forward_internal.h"

void linear_prepare(const struct forward *f, const float *x, size_t n, size_t row, size_t block,
                    const struct quantized_rows *quantized)
{
    if (!f->model->quantized)
        return;
    size_t at = row * quantized->stride + block;
    f->products->quantize(x, n, quantized->coarse, quantized->q + at * KERNEL_BLOCK,
                          quantized->scale + at, quantized->sum + at);
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
    f->products->matmul[matrix_layout(l->w)](&m);
}

/* As many as make up for what a call costs, as long as they stay in cache. */
static size_t unit_rows(const struct forward *f, const struct matrix *w)
{
    size_t n = w->type == MATRIX_F32 ? ROW_UNIT : f->products->unit_rows;
    while (n > ROW_UNIT && n * w->n_in * sizeof(int16_t) > UNIT_BYTES)
        n /= 2;
    return n;
}

static size_t n_tiles(const struct matrix *w)
{
    return w->n_rows / KERNEL_TILE;
}

size_t unit_count(const struct forward *f, const struct matrix *w, size_t n_rows, size_t tiles)
{
    size_t rows = unit_rows(f, w);
    return ((n_rows + rows - 1) / rows) * ((n_tiles(w) + tiles - 1) / tiles);
}

/* Members go on from one phase to the next with the rows they had: what they wrote is in their own
 * caches. */
struct unit_range unit_at(const struct forward *f, const struct matrix *w, size_t unit,
                          size_t n_rows, size_t tiles)
{
    size_t rows = unit_rows(f, w);
    size_t n_members = crew_size(team_crew(f->team));
    size_t n_row_units = (n_rows + rows - 1) / rows;
    size_t n_tile_units = (n_tiles(w) + tiles - 1) / tiles;
    size_t share = (n_row_units + n_members - 1) / n_members; /* row units of a member */
    size_t first = unit / (share * n_tile_units) * share;
    size_t n = first + share < n_row_units ? share : n_row_units - first;
    size_t in_share = unit - first * n_tile_units;
    size_t row = (first + in_share % n) * rows;
    size_t tile = in_share / n * tiles;
    return (struct unit_range){
        .row_begin = row,
        .row_end = row + rows < n_rows ? row + rows : n_rows,
        .tile_begin = tile,
        .tile_end = tile + tiles < n_tiles(w) ? tile + tiles : n_tiles(w),
    };
}
