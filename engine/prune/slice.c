/* Cutting the kept channels out of every tensor into a new GGUF file, row by row: no more than a
 * row is in memory. A Hugging Face folder's rows are brought into GGUF's order on the way. See
 * prune_internal.h. */
#include "engine/base/mem.h"
#include "engine/model/gguf.h"
#include "engine/model/gguf_write.h"
#include "engine/model/mapped_file.h"
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

/* The widths that are stored: those kept, filled up with zeros where a type has only whole blocks.
 */
struct plan {
    const struct prune_options *options;
    const struct model_file *file;
    const struct kept *kept;
    uint32_t hidden, mlp;
};

/* One tensor's cut: the kept indices along each dimension, NULL for all in their order, and how
 * many elements the file has there, zeros behind the kept ones. */
struct cut {
    const struct tensor *tensor;
    const uint32_t *columns, *rows;
    uint64_t n_columns, n_rows; /* kept */
    uint64_t columns_stored, rows_stored;
    enum tensor_type type;
    bool gguf_rows; /* rows of heads, to be brought into GGUF's order */
    bool verbatim;  /* no columns cut, same type: rows keep their bytes */
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

/* The axis as it is kept and as it is stored. */
static void axis_sizes(const struct plan *plan, enum axis axis, uint64_t *n, uint64_t *stored)
{
    if (axis == AXIS_KEEP)
        return;
    *n = axis == AXIS_HIDDEN ? plan->kept->hidden : plan->kept->mlp;
    *stored = axis == AXIS_HIDDEN ? plan->hidden : plan->mlp;
}

static const uint32_t *axis_index(const struct plan *plan, enum axis axis, uint32_t layer,
                                  uint64_t full)
{
    const struct kept *kept = plan->kept;
    if (axis == AXIS_KEEP || (axis == AXIS_HIDDEN ? kept->hidden : kept->mlp) == full)
        return NULL;
    return axis == AXIS_HIDDEN ? kept->hidden_index : kept->mlp_index + (size_t)layer * kept->mlp;
}

static bool is_head(const char *name)
{
    return strcmp(name, "token_embd.weight") == 0 || strcmp(name, "output.weight") == 0;
}

/* A matrix takes the wanted type; without one it keeps its own, or Q8_0 where that cannot be
 * written. */
static enum tensor_type matrix_type(const struct prune_options *options, const struct tensor *t,
                                    bool is_cut)
{
    if (is_head(t->name) && options->head_type != PRUNE_TYPE_KEEP)
        return (enum tensor_type)options->head_type;
    if (options->type != PRUNE_TYPE_KEEP)
        return (enum tensor_type)options->type;
    return tensor_type_is_writable(t->type) || !is_cut ? t->type : TENSOR_Q8_0;
}

/* Vectors stay float. Rows of heads that are not whole blocks become F16. */
static enum tensor_type choose_type(const struct plan *plan, const struct cut *cut)
{
    const struct tensor *t = cut->tensor;
    if (t->n_dims < 2)
        return cut->columns_stored != t->dims[0] || !model_file_gguf(plan->file) ? TENSOR_F32
                                                                                 : t->type;
    enum tensor_type type = tensor_type_for_rows(
        matrix_type(plan->options, t, cut->n_columns != t->dims[0]), cut->columns_stored);
    return cut->columns_stored % tensor_block_elements(type) ? TENSOR_F16 : type;
}

/* q and k: their rows, or the elements of their biases. */
static bool is_rotated(const char *name)
{
    static const char *const parts[] = {".attn_q.weight", ".attn_k.weight", ".attn_q.bias",
                                        ".attn_k.bias"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (strstr(name, parts[i]))
            return true;
    return false;
}

/* A tensor's sizes and type. */
static struct cut plan_sizes(const struct plan *plan, const struct tensor *t)
{
    uint32_t layer = 0;
    const struct rule *rule = find_rule(t->name, &layer);
    struct cut cut = {.tensor = t,
                      .n_columns = t->dims[0],
                      .n_rows = t->dims[1],
                      .columns_stored = t->dims[0],
                      .rows_stored = t->dims[1]};
    if (rule) {
        axis_sizes(plan, rule->columns, &cut.n_columns, &cut.columns_stored);
        axis_sizes(plan, rule->rows, &cut.n_rows, &cut.rows_stored);
    }
    cut.type = choose_type(plan, &cut);
    return cut;
}

static struct cut plan_cut(const struct plan *plan, const struct tensor *t)
{
    uint32_t layer = 0;
    const struct rule *rule = find_rule(t->name, &layer);
    struct cut cut = plan_sizes(plan, t);
    if (rule) {
        cut.columns = axis_index(plan, rule->columns, layer, t->dims[0]);
        cut.rows = axis_index(plan, rule->rows, layer, t->dims[1]);
    }
    cut.gguf_rows = is_rotated(t->name) && model_file_gguf_row(plan->file, 1) != 1;
    cut.verbatim = cut.columns_stored == t->dims[0] && !cut.columns && cut.type == t->type &&
                   (t->n_dims > 1 || !cut.gguf_rows);
    return cut;
}

/* Widths of rows in whole blocks of every matrix that has them. */
static struct plan plan_widths(const struct prune_options *options, const struct model_file *file,
                               const struct kept *kept)
{
    struct plan plan = {options, file, kept, kept->hidden, kept->mlp};
    for (size_t i = 0; i < model_file_n_tensors(file); i++) {
        const struct tensor *t = model_file_tensor_at(file, i);
        uint32_t layer;
        const struct rule *rule = find_rule(t->name, &layer);
        if (!rule || rule->columns == AXIS_KEEP || t->n_dims < 2)
            continue;
        uint32_t *width = rule->columns == AXIS_HIDDEN ? &plan.hidden : &plan.mlp;
        uint32_t n = rule->columns == AXIS_HIDDEN ? kept->hidden : kept->mlp;
        enum tensor_type type = matrix_type(options, t, n != t->dims[0]);
        uint32_t block = tensor_block_elements(tensor_type_for_rows(type, n));
        *width = (*width + block - 1) / block * block;
    }
    return plan;
}

size_t slice_bytes(const struct prune_options *options, const struct model_file *file,
                   uint32_t hidden, uint32_t mlp)
{
    const struct kept kept = {.hidden = hidden, .mlp = mlp};
    const struct plan plan = plan_widths(options, file, &kept);
    size_t bytes = 0;
    for (size_t i = 0; i < model_file_n_tensors(file); i++) {
        const struct tensor *t = model_file_tensor_at(file, i);
        struct cut cut = plan_sizes(&plan, t);
        size_t row_bytes;
        if (tensor_type_bytes(cut.type, cut.columns_stored, &row_bytes))
            bytes += row_bytes * cut.rows_stored;
    }
    return bytes;
}

static uint64_t source_row(const struct plan *plan, const struct cut *cut, uint64_t r)
{
    if (cut->gguf_rows)
        return model_file_gguf_row(plan->file, (uint32_t)r);
    return cut->rows ? cut->rows[r] : r;
}

static int write_zeros(struct gguf_writer *writer, size_t bytes, struct error *err)
{
    static const uint8_t zeros[4096];
    int rc = 0;
    for (size_t n; bytes && rc == 0; bytes -= n) {
        n = bytes < sizeof(zeros) ? bytes : sizeof(zeros);
        rc = gguf_writer_write(writer, zeros, n, err);
    }
    return rc;
}

static int copy_rows(struct gguf_writer *writer, const struct plan *plan, const struct cut *cut,
                     struct error *err)
{
    const struct tensor *t = cut->tensor;
    const uint8_t *data = t->data;
    size_t row_bytes = t->bytes / t->dims[1];
    int rc = 0;
    if (!cut->rows && !cut->gguf_rows)
        rc = gguf_writer_write(writer, data, t->bytes, err);
    else
        for (uint64_t r = 0; r < cut->n_rows && rc == 0; r++)
            rc = gguf_writer_write(writer, data + source_row(plan, cut, r) * row_bytes, row_bytes,
                                   err);
    return rc ? rc : write_zeros(writer, (cut->rows_stored - cut->n_rows) * row_bytes, err);
}

/* The kept elements of a row, in order; what is behind them in `out` is zero and stays so. */
static void pick(const struct plan *plan, const struct cut *cut, const float *row, float *out)
{
    bool is_head_vector = cut->gguf_rows && cut->tensor->n_dims < 2;
    for (uint64_t c = 0; c < cut->n_columns; c++)
        out[c] = row[is_head_vector ? model_file_gguf_row(plan->file, (uint32_t)c)
                     : cut->columns ? cut->columns[c]
                                    : c];
}

static int write_rows(struct gguf_writer *writer, const struct plan *plan, const struct cut *cut,
                      struct error *err)
{
    const struct tensor *t = cut->tensor;
    size_t src_bytes = t->bytes / t->dims[1];
    size_t dst_bytes;
    if (!tensor_type_bytes(cut->type, cut->columns_stored, &dst_bytes))
        return error_set(err, ERROR_INTERNAL, "%s: row of %" PRIu64 " columns", t->name,
                         cut->columns_stored);
    _cleanup_mem_ float *row = mem_array(t->dims[0], sizeof(float));
    _cleanup_mem_ float *picked = mem_calloc(cut->columns_stored, sizeof(float));
    _cleanup_mem_ void *packed = mem_alloc(dst_bytes);
    if (!row || !picked || !packed)
        return error_memory(err, t->name, t->dims[0] * sizeof(float));
    for (uint64_t r = 0; r < cut->n_rows; r++) {
        uint64_t src = t->n_dims < 2 ? 0 : source_row(plan, cut, r);
        tensor_dequantize(t->type, (const uint8_t *)t->data + src * src_bytes, t->dims[0], row);
        pick(plan, cut, row, picked);
        int rc = tensor_quantize(cut->type, picked, cut->columns_stored, packed, err);
        if (rc == 0)
            rc = gguf_writer_write(writer, packed, dst_bytes, err);
        if (rc)
            return rc;
    }
    return write_zeros(writer, (cut->rows_stored - cut->n_rows) * dst_bytes, err);
}

static void add_tensors(const struct plan *plan, const float *rope, struct gguf_writer *writer)
{
    uint64_t n_pairs = model_file_params(plan->file)->rope_dim / 2;
    for (size_t i = 0; i < model_file_n_tensors(plan->file); i++) {
        struct cut cut = plan_cut(plan, model_file_tensor_at(plan->file, i));
        uint64_t dims[TENSOR_MAX_DIMS] = {cut.columns_stored, cut.rows_stored, cut.tensor->dims[2],
                                          cut.tensor->dims[3]};
        gguf_writer_add_tensor(writer, cut.tensor->name, cut.type, cut.tensor->n_dims, dims);
    }
    if (rope)
        gguf_writer_add_tensor(writer, "rope_freqs.weight", TENSOR_F32, 1, &n_pairs);
}

static int write_tensors(const struct plan *plan, const float *rope, struct gguf_writer *writer,
                         struct error *err)
{
    const struct prune_options *options = plan->options;
    int rc = 0;
    size_t n = model_file_n_tensors(plan->file);
    for (size_t i = 0; i < n && rc == 0; i++) {
        struct cut cut = plan_cut(plan, model_file_tensor_at(plan->file, i));
        rc =
            cut.verbatim ? copy_rows(writer, plan, &cut, err) : write_rows(writer, plan, &cut, err);
        mapped_file_forget(cut.tensor->data, cut.tensor->bytes);
        if (options->progress)
            options->progress(options->user, "writing", (double)(i + 1) / (double)n);
    }
    if (rc == 0 && rope)
        rc = gguf_writer_write(writer, rope,
                               model_file_params(plan->file)->rope_dim / 2 * sizeof(float), err);
    return rc;
}

/* The widths as they are stored, and the true one where it is another. */
static void put_widths(const struct plan *plan, struct gguf_writer *writer)
{
    const struct model_params *p = model_file_params(plan->file);
    /* channels that a padded source has beyond its true width hold nothing to keep */
    uint32_t true_width = plan->kept->hidden < p->norm_width ? plan->kept->hidden : p->norm_width;
    char key[64];
    snprintf(key, sizeof(key), "%s.embedding_length", model_arch_name(p->arch));
    gguf_writer_set_u32(writer, key, plan->hidden);
    snprintf(key, sizeof(key), "%s.feed_forward_length", model_arch_name(p->arch));
    gguf_writer_set_u32(writer, key, plan->mlp);
    if (true_width != plan->hidden)
        gguf_writer_set_u32(writer, "overfill.norm_width", true_width);
    else
        gguf_writer_remove(writer, "overfill.norm_width");
}

int slice_write(const struct prune_options *options, const struct model_file *file,
                const struct kept *kept, uint64_t calibration_hash, struct error *err)
{
    float divisors[MODEL_MAX_HEAD_DIM / 2];
    const float *rope = model_file_rope_divisors(file, divisors) ? divisors : NULL;
    struct plan plan = plan_widths(options, file, kept);
    struct gguf_writer *writer;
    int rc = gguf_writer_open(options->out_path, &writer, err);
    if (rc)
        return rc;
    twin_metadata(file, "minitron", kept->hidden, kept->mlp, calibration_hash, writer);
    put_widths(&plan, writer);
    add_tensors(&plan, rope, writer);
    rc = write_tensors(&plan, rope, writer, err);
    if (rc) {
        gguf_writer_abort(writer);
        return rc;
    }
    return gguf_writer_finish(writer, err);
}
