/* What basis, layers and head share: products of rows, the full model's tensors turned, and which
 * rows of a batch are answers. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"
#include "engine/prune/vocabulary.h"

#include <string.h>

/* out = add * out + x w, or x w^T if w is turned. */
static void rows_times(const struct reconstruct *r, const float *x, size_t n, size_t n_in,
                       const float *w, bool turned, size_t n_out, float add, float *out)
{
    const struct product product = {
        .b_turned = turned,
        .m = n,
        .n = n_out,
        .k = n_in,
        .alpha = 1,
        .beta = add,
        .a = x,
        .b = w,
        .a_stride = n_in,
        .b_stride = turned ? n_in : n_out,
        .c = out,
        .c_stride = n_out,
    };
    dense_product(r->reader.team, &product);
}

void multiply(const struct reconstruct *r, const float *x, size_t n, size_t n_in, const float *w,
              size_t n_out, float add, float *out)
{
    rows_times(r, x, n, n_in, w, true, n_out, add, out);
}

void turn(const struct reconstruct *r, const float *rows, size_t n, size_t n_in, const float *map,
          size_t n_out, float *out)
{
    rows_times(r, rows, n, n_in, map, false, n_out, 0, out);
}

float *load_matrix(const struct tensor *t, struct error *err)
{
    size_t n = t->dims[0] * t->dims[1];
    float *w = mem_array(n, sizeof(float));
    if (w)
        tensor_dequantize(t->type, t->data, n, w);
    else
        error_memory(err, t->name, n * sizeof(float));
    return w;
}

int solve_input_map(const struct reconstruct *r, const struct least_squares *ls, double start,
                    float *map, struct least_squares_result *ret_result, struct error *err)
{
    size_t n = ls->n_in;
    _cleanup_mem_ float *identity = r->basis ? NULL : mem_calloc(n * n, sizeof(float));
    if (!r->basis && !identity)
        return error_memory(err, "input map", n * n * sizeof(float));
    for (size_t i = 0; identity && i < n; i++)
        identity[i * n + i] = 1;
    memset(map, 0, ls->n_out * n * sizeof(float));
    return least_squares_solve(ls, 0, ls->n_out, identity, start, map, ret_result, err);
}

int put_turned(struct reconstruct *r, const char *name, const struct tensor *t, const float *map,
               const double *gram, struct error *err)
{
    struct vocabulary v = {0};
    _cleanup_mem_ float *turned = mem_array(VOCABULARY_PART, r->hidden * sizeof(float));
    if (twin_store_has(r->store, name))
        return 0;
    if (!turned)
        return error_memory(err, name, VOCABULARY_PART * r->hidden * sizeof(float));
    int rc = twin_store_begin(r->store, name, head_type(r), t->dims[1], r->hidden, gram, err);
    if (rc)
        return rc;
    rc = vocabulary_open(r->reader.team, t, &v, err);
    while (rc == 0 && vocabulary_next(&v)) {
        if (map)
            turn(r, v.part, v.n_part, v.width, map, r->hidden, turned);
        rc = twin_store_add(r->store, map ? turned : v.part, v.n_part, err);
    }
    vocabulary_close(&v);
    return twin_store_end(r->store, rc, err);
}

size_t answer_rows(const struct sample_set *samples, struct batch batch)
{
    size_t n = 0;
    for (size_t i = batch.first; i < batch.first + batch.n; i++)
        n += samples->samples[i].n - samples->samples[i].n_prompt;
    return n;
}

void gather_answers(const struct sample_set *samples, struct batch batch, const float *rows,
                    size_t stride, size_t width, float *out)
{
    for (size_t i = batch.first; i < batch.first + batch.n; i++) {
        const struct sample *s = &samples->samples[i];
        for (uint32_t t = s->n_prompt; t < s->n; t++, out += width)
            memcpy(out, rows + t * stride, width * sizeof(float));
        rows += s->n * stride;
    }
}

void add_rows(const struct reconstruct *r, struct batch batch, struct least_squares *ls,
              const float *x, size_t x_stride, const float *y, size_t y_stride)
{
    for (size_t i = batch.first; i < batch.first + batch.n;) {
        const struct sample *s = &r->samples->samples[i];
        size_t n = 0;
        for (; i < batch.first + batch.n && r->samples->samples[i].held == s->held; i++)
            n += r->samples->samples[i].n - r->samples->samples[i].n_prompt;
        least_squares_add(ls, s->held, x, x_stride, y, y_stride, n);
        x += n * x_stride;
        y += n * y_stride;
    }
}
