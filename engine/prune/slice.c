/* Cutting the kept channels out of every tensor into a new GGUF file, row by row: no more than a
 * row is in memory. See prune_internal.h. */
#include "engine/base/mem.h"
#include "engine/model/gguf.h"
#include "engine/model/gguf_write.h"
#include "engine/prune/prune_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Which channels a dimension of a tensor runs over. */
enum axis { AXIS_KEEP, AXIS_HIDDEN, AXIS_MLP };

struct rule {
    const char *name; /* behind "blk.N." if per_layer */
    bool per_layer;
    enum axis columns, rows;
};

/* Everything not listed (biases and norms of heads, rope_freqs) stays as it is. */
static const struct rule RULES[] = {
    {"token_embd.weight", false, AXIS_HIDDEN, AXIS_KEEP},
    {"output_norm.weight", false, AXIS_HIDDEN, AXIS_KEEP},
    {"output.weight", false, AXIS_HIDDEN, AXIS_KEEP},
    {"attn_norm.weight", true, AXIS_HIDDEN, AXIS_KEEP},
    {"ffn_norm.weight", true, AXIS_HIDDEN, AXIS_KEEP},
    {"attn_q.weight", true, AXIS_HIDDEN, AXIS_KEEP},
    {"attn_k.weight", true, AXIS_HIDDEN, AXIS_KEEP},
    {"attn_v.weight", true, AXIS_HIDDEN, AXIS_KEEP},
    {"attn_output.weight", true, AXIS_KEEP, AXIS_HIDDEN},
    {"ffn_gate.weight", true, AXIS_HIDDEN, AXIS_MLP},
    {"ffn_up.weight", true, AXIS_HIDDEN, AXIS_MLP},
    {"ffn_down.weight", true, AXIS_MLP, AXIS_HIDDEN},
};

/* One tensor's cut: the kept indices along each dimension, NULL for all. */
struct cut {
    const struct tensor *tensor;
    const uint32_t *columns, *rows;
    uint64_t n_columns, n_rows;
    enum tensor_type type;
    bool verbatim; /* no columns cut, same type: rows keep their bytes */
};

static const struct rule *find_rule(const char *name, uint32_t *ret_layer)
{
    int end = 0;
    bool per_layer = sscanf(name, "blk.%u.%n", ret_layer, &end) == 1 && end > 0;
    for (size_t i = 0; i < sizeof(RULES) / sizeof(RULES[0]); i++)
        if (RULES[i].per_layer == per_layer && strcmp(RULES[i].name, name + end) == 0)
            return &RULES[i];
    return NULL;
}

static const uint32_t *axis_index(const struct kept *kept, enum axis axis, uint32_t layer,
                                  uint64_t full, uint64_t *ret_n)
{
    uint32_t n = axis == AXIS_HIDDEN ? kept->hidden : kept->mlp;
    if (axis == AXIS_KEEP || n == full) {
        *ret_n = full;
        return NULL;
    }
    *ret_n = n;
    return axis == AXIS_HIDDEN ? kept->hidden_index : kept->mlp_index + (size_t)layer * n;
}

static bool is_writable(enum tensor_type type)
{
    return type == TENSOR_F32 || type == TENSOR_F16 || type == TENSOR_BF16 || type == TENSOR_Q8_0 ||
           type == TENSOR_Q4_0 || type == TENSOR_Q4_1;
}

/* Vectors stay float. A matrix takes the wanted type; without one it keeps its own, or Q8_0 where
 * that cannot be written. Rows that are not whole blocks become F16. */
static enum tensor_type choose_type(const struct prune_options *options, const struct cut *cut)
{
    const struct tensor *t = cut->tensor;
    if (t->n_dims < 2)
        return cut->columns ? TENSOR_F32 : t->type;
    if (options->type == PRUNE_TYPE_KEEP && !cut->columns)
        return t->type;
    enum tensor_type type = options->type != PRUNE_TYPE_KEEP ? (enum tensor_type)options->type
                            : is_writable(t->type)           ? t->type
                                                             : TENSOR_Q8_0;
    return cut->n_columns % tensor_block_elements(type) ? TENSOR_F16 : type;
}

static struct cut plan_cut(const struct prune_options *options, const struct tensor *t,
                           const struct kept *kept)
{
    uint32_t layer = 0;
    const struct rule *rule = find_rule(t->name, &layer);
    struct cut cut = {.tensor = t, .n_columns = t->dims[0], .n_rows = t->dims[1]};
    if (rule) {
        cut.columns = axis_index(kept, rule->columns, layer, t->dims[0], &cut.n_columns);
        cut.rows = axis_index(kept, rule->rows, layer, t->dims[1], &cut.n_rows);
    }
    cut.type = choose_type(options, &cut);
    cut.verbatim = !cut.columns && cut.type == t->type;
    return cut;
}

static int copy_rows(struct gguf_writer *writer, const struct cut *cut, struct error *err)
{
    const struct tensor *t = cut->tensor;
    const uint8_t *data = t->data;
    size_t row_bytes = t->bytes / t->dims[1];
    int rc = 0;
    if (!cut->rows)
        return gguf_writer_write(writer, data, t->bytes, err);
    for (uint64_t r = 0; r < cut->n_rows && rc == 0; r++)
        rc = gguf_writer_write(writer, data + cut->rows[r] * row_bytes, row_bytes, err);
    return rc;
}

static int write_rows(struct gguf_writer *writer, const struct cut *cut, struct error *err)
{
    const struct tensor *t = cut->tensor;
    size_t src_bytes = t->bytes / t->dims[1];
    size_t dst_bytes;
    if (!tensor_type_bytes(cut->type, cut->n_columns, &dst_bytes))
        return error_set(err, ERROR_INTERNAL, "%s: row of %" PRIu64 " columns", t->name,
                         cut->n_columns);
    _cleanup_mem_ float *row = mem_array(t->dims[0], sizeof(float));
    _cleanup_mem_ void *packed = mem_alloc(dst_bytes);
    if (!row || !packed)
        return error_memory(err, t->name, t->dims[0] * sizeof(float));
    for (uint64_t r = 0; r < cut->n_rows; r++) {
        uint64_t src = cut->rows ? cut->rows[r] : r;
        tensor_dequantize(t->type, (const uint8_t *)t->data + src * src_bytes, t->dims[0], row);
        for (uint64_t c = 0; cut->columns && c < cut->n_columns; c++)
            row[c] = row[cut->columns[c]]; /* ascending, so never overwritten before it is read */
        int rc = tensor_quantize(cut->type, row, cut->n_columns, packed, err);
        if (rc == 0)
            rc = gguf_writer_write(writer, packed, dst_bytes, err);
        if (rc)
            return rc;
    }
    return 0;
}

static void add_tensors(const struct prune_options *options, const struct model_file *file,
                        const struct kept *kept, struct gguf_writer *writer)
{
    for (size_t i = 0; i < model_file_n_tensors(file); i++) {
        struct cut cut = plan_cut(options, model_file_tensor_at(file, i), kept);
        uint64_t dims[TENSOR_MAX_DIMS] = {cut.n_columns, cut.n_rows, cut.tensor->dims[2],
                                          cut.tensor->dims[3]};
        gguf_writer_add_tensor(writer, cut.tensor->name, cut.type, cut.tensor->n_dims, dims);
    }
}

static int write_tensors(const struct prune_options *options, const struct model_file *file,
                         const struct kept *kept, struct gguf_writer *writer, struct error *err)
{
    int rc = 0;
    size_t n = model_file_n_tensors(file);
    for (size_t i = 0; i < n && rc == 0; i++) {
        struct cut cut = plan_cut(options, model_file_tensor_at(file, i), kept);
        rc = cut.verbatim ? copy_rows(writer, &cut, err) : write_rows(writer, &cut, err);
        if (options->progress)
            options->progress(options->user, "writing", (double)(i + 1) / (double)n);
    }
    return rc;
}

int slice_write(const struct prune_options *options, const struct model_file *file,
                const struct kept *kept, uint64_t calibration_hash, struct error *err)
{
    struct gguf_writer *writer;
    if (!model_file_gguf(file))
        return error_set(err, ERROR_UNSUPPORTED,
                         "%s: pruning starts from a GGUF file, this is a folder",
                         options->model_path);
    int rc = gguf_writer_open(options->out_path, &writer, err);
    if (rc)
        return rc;
    twin_metadata(file, "minitron", kept->hidden, kept->mlp, calibration_hash, writer);
    add_tensors(options, file, kept, writer);
    rc = write_tensors(options, file, kept, writer, err);
    if (rc) {
        gguf_writer_abort(writer);
        return rc;
    }
    return gguf_writer_finish(writer, err);
}
