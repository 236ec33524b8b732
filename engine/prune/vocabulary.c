/* Products with a head, some thousand of its rows at a time. See vocabulary.h. */
#include "engine/prune/vocabulary.h"

#include "engine/base/mem.h"
#include "engine/prune/dense.h"

#define LOAD_ROWS 64 /* that one member of the team turns to float */

int vocabulary_open(struct team *team, const struct tensor *head, struct vocabulary *ret_vocabulary,
                    struct error *err)
{
    *ret_vocabulary = (struct vocabulary){
        .team = team,
        .head = head,
        .width = head->dims[0],
        .n_tokens = head->dims[1],
        .part = mem_array(VOCABULARY_PART, head->dims[0] * sizeof(float)),
    };
    if (ret_vocabulary->part)
        return 0;
    return error_memory(err, head->name, VOCABULARY_PART * head->dims[0] * sizeof(float));
}

void vocabulary_close(struct vocabulary *v)
{
    mem_free(v->part);
}

static void load_rows(void *context, unsigned member, size_t unit)
{
    const struct vocabulary *v = context;
    size_t row = unit * LOAD_ROWS;
    size_t n = v->n_part - row < LOAD_ROWS ? v->n_part - row : LOAD_ROWS;
    size_t row_bytes = v->head->bytes / v->n_tokens;
    tensor_dequantize(v->head->type, (const uint8_t *)v->head->data + (v->first + row) * row_bytes,
                      n * v->width, v->part + row * v->width);
}

bool vocabulary_next(struct vocabulary *v)
{
    v->first += v->n_part;
    if (v->first == v->n_tokens) {
        v->first = v->n_part = 0;
        return false;
    }
    size_t left = v->n_tokens - v->first;
    v->n_part = left < VOCABULARY_PART ? left : VOCABULARY_PART;
    team_for(v->team, (v->n_part + LOAD_ROWS - 1) / LOAD_ROWS, load_rows, v);
    return true;
}

void vocabulary_logits(struct vocabulary *v, const float *x, size_t n, float *out)
{
    while (vocabulary_next(v)) {
        const struct product product = {
            .b_turned = true,
            .m = n,
            .n = v->n_part,
            .k = v->width,
            .alpha = 1,
            .a = x,
            .b = v->part,
            .a_stride = v->width,
            .b_stride = v->width,
            .c = out + v->first,
            .c_stride = v->n_tokens,
        };
        dense_product(v->team, &product);
    }
}

void vocabulary_back(struct vocabulary *v, const float *z, size_t n, float *out)
{
    while (vocabulary_next(v)) {
        const struct product product = {
            .m = n,
            .n = v->width,
            .k = v->n_part,
            .alpha = 1,
            .beta = v->first ? 1 : 0,
            .a = z + v->first,
            .b = v->part,
            .a_stride = v->n_tokens,
            .b_stride = v->width,
            .c = out,
            .c_stride = v->width,
        };
        dense_product(v->team, &product);
    }
}
