/* From a model file to packed weights. See model.h. */
#include "engine/model/model.h"

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/model/mapped_file.h"
#include "engine/model/pack.h"
#include "engine/model/packed_cache.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static uint32_t round_up(uint32_t n, uint32_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* A head's row `i` in packed order is the file's row: interleaved files have the pair (2j, 2j+1)
 * where we have (j, j + rope_dim/2). Elements past rope_dim stay in place. */
static uint32_t file_row(const struct model_params *p, uint32_t i)
{
    if (p->rope_pairs == ROPE_HALVES || i >= p->rope_dim)
        return i;
    uint32_t half = p->rope_dim / 2;
    return i < half ? 2 * i : 2 * (i - half) + 1;
}

/* Copies a float vector; order: the packed order of a head's elements. */
static float *load_vector(const struct tensor *t, uint64_t n)
{
    float *v = mem_array(n, sizeof(float));
    if (v)
        tensor_dequantize(t->type, t->data, n, v);
    return v;
}

static float *load_head_vector(const struct model_params *p, const struct tensor *t)
{
    float *v = load_vector(t, p->head_dim);
    float sorted[MODEL_MAX_HEAD_DIM];
    if (!v)
        return NULL;
    for (uint32_t i = 0; i < p->head_dim; i++)
        sorted[i] = v[file_row(p, i)];
    memcpy(v, sorted, p->head_dim * sizeof(float));
    return v;
}

static enum matrix_type choose_type(const struct model *model, const struct row_source *rows,
                                    uint32_t n_rows, uint32_t n_in)
{
    if (model->weights == MODEL_WEIGHTS_F32)
        return MATRIX_F32;
    if (model->weights == MODEL_WEIGHTS_Q8)
        return MATRIX_Q8;
    enum matrix_type type = MATRIX_Q4;
    for (uint32_t r = 0; r < n_rows && type != MATRIX_Q8; r++) {
        enum matrix_type row =
            rows[r].tensor ? matrix_type_for(rows[r].tensor->type, n_in) : MATRIX_Q4;
        if (row != MATRIX_Q4)
            type = row;
    }
    return type;
}

static int alloc(struct model *model, const struct row_source *rows, uint32_t n_rows, uint32_t n_in,
                 struct matrix *ret_matrix, struct error *err)
{
    int rc = matrix_alloc(choose_type(model, rows, n_rows, n_in), n_rows, n_in, &model->arena,
                          ret_matrix, err);
    if (rc == 0)
        model->packed_bytes += matrix_bytes(ret_matrix);
    return rc;
}

static int pack(struct model *model, const struct row_source *rows, uint32_t n_rows, uint32_t n_in,
                struct matrix *ret_matrix, struct error *err)
{
    int rc = alloc(model, rows, n_rows, n_in, ret_matrix, err);
    if (rc || model->arena.given)
        return rc;
    return matrix_fill(ret_matrix, rows, 0, n_rows / KERNEL_TILE, err);
}

/* All rows of one tensor in the file's order. */
static uint32_t plain_rows(const struct tensor *t, struct row_source *rows)
{
    uint32_t n_rows = round_up((uint32_t)t->dims[1], KERNEL_TILE);
    for (uint32_t r = 0; r < n_rows; r++)
        rows[r] = (struct row_source){r < t->dims[1] ? t : NULL, r};
    return n_rows;
}

static int pack_plain(struct model *model, const struct tensor *t, struct row_source *rows,
                      struct matrix *ret_matrix, struct error *err)
{
    return pack(model, rows, plain_rows(t, rows), (uint32_t)t->dims[0], ret_matrix, err);
}

/* Head h of q, k or v to rows[head_pad]. v is not rotated, so its order is the file's. */
static void head_rows(const struct model *model, const struct tensor *t, uint32_t h, bool rotated,
                      struct row_source *rows)
{
    const struct model_params *p = &model->params;
    for (uint32_t i = 0; i < model->head_pad; i++) {
        uint32_t row = rotated ? file_row(p, i) : i;
        rows[i] = (struct row_source){i < p->head_dim ? t : NULL, (uint64_t)h * p->head_dim + row};
    }
}

/* The q, k and v heads one after another: calls head_rows for each. */
static uint32_t qkv_rows(const struct model *model, const struct tensor *q, const struct tensor *k,
                         const struct tensor *v, struct row_source *rows)
{
    const struct model_params *p = &model->params;
    uint32_t n = 0;
    for (uint32_t h = 0; h < p->n_heads; h++, n += model->head_pad)
        head_rows(model, q, h, true, rows + n);
    for (uint32_t h = 0; h < p->n_kv_heads; h++, n += model->head_pad)
        head_rows(model, k, h, true, rows + n);
    for (uint32_t h = 0; h < p->n_kv_heads; h++, n += model->head_pad)
        head_rows(model, v, h, false, rows + n);
    return n;
}

/* Biases in the order of the packed qkv rows. */
static float *load_qkv_bias(const struct model *model, const struct layer_tensors *t,
                            struct row_source *rows)
{
    const struct tensor *sources[3] = {t->q_bias, t->k_bias, t->v_bias};
    uint32_t n = qkv_rows(model, sources[0], sources[1], sources[2], rows);
    float *bias = mem_calloc(n, sizeof(float));

    for (int s = 0; s < 3 && bias; s++) {
        _cleanup_mem_ float *values = load_vector(sources[s], sources[s]->dims[0]);
        for (uint32_t r = 0; r < n && values; r++)
            if (rows[r].tensor == sources[s])
                bias[r] = values[rows[r].index];
        if (!values) {
            mem_free(bias);
            bias = NULL;
        }
    }
    return bias;
}

/* Norm weights: the tensor's, or ones. */
static float *load_norm(const struct tensor *t, uint32_t n)
{
    if (t)
        return load_vector(t, n);
    float *ones = mem_array(n, sizeof(float));
    for (uint32_t i = 0; ones && i < n; i++)
        ones[i] = 1;
    return ones;
}

static int open_layer_vectors(struct model *model, struct layer *layer,
                              const struct layer_tensors *t, struct row_source *rows,
                              struct error *err)
{
    const struct model_params *p = &model->params;

    layer->attn_norm = load_norm(t->attn_norm, p->hidden);
    layer->mlp_norm = load_norm(t->mlp_norm, p->hidden);
    bool ok = layer->attn_norm && layer->mlp_norm;
    if (p->has_qk_norm) {
        layer->q_norm = load_head_vector(p, t->q_norm);
        layer->k_norm = load_head_vector(p, t->k_norm);
        ok = ok && layer->q_norm && layer->k_norm;
    }
    if (p->has_qkv_bias) {
        layer->qkv_bias = load_qkv_bias(model, t, rows);
        ok = ok && layer->qkv_bias;
    }
    return ok ? 0 : error_memory(err, "layer vectors", p->hidden);
}

/* Alternately 16 rows of gate and of up. */
static int pack_gate_up(struct model *model, const struct tensor *gate, const struct tensor *up,
                        struct row_source *rows, struct matrix *ret_matrix, struct error *err)
{
    const struct model_params *p = &model->params;
    uint32_t n = 0;
    for (uint32_t begin = 0; begin < p->mlp; begin += KERNEL_TILE)
        for (int s = 0; s < 2; s++)
            for (uint32_t i = begin; i < begin + KERNEL_TILE; i++)
                rows[n++] = (struct row_source){i < p->mlp ? (s ? up : gate) : NULL, i};
    return pack(model, rows, n, p->hidden, ret_matrix, err);
}

static int pack_layer(struct model *model, uint32_t l, const struct layer_tensors *t,
                      struct row_source *rows, struct error *err)
{
    struct layer *layer = &model->layers[l];
    int rc = layer->attn_norm ? 0 : open_layer_vectors(model, layer, t, rows, err);
    if (rc == 0 && t->q)
        rc = pack(model, rows, qkv_rows(model, t->q, t->k, t->v, rows), model->params.hidden,
                  &layer->qkv, err);
    if (rc == 0 && t->o)
        rc = pack_plain(model, t->o, rows, &layer->o, err);
    if (rc == 0 && t->gate)
        rc = pack_gate_up(model, t->gate, t->up, rows, &layer->gate_up, err);
    if (rc == 0 && t->down)
        rc = pack_plain(model, t->down, rows, &layer->down, err);
    return rc;
}

void layer_tensors_find(const struct model_file *file, uint32_t layer,
                        struct layer_tensors *ret_tensors)
{
    struct layer_tensors *t = ret_tensors;
    const struct {
        const char *name;
        const struct tensor **tensor;
    } parts[] = {
        {"attn_norm.weight", &t->attn_norm},
        {"ffn_norm.weight", &t->mlp_norm},
        {"attn_q_norm.weight", &t->q_norm},
        {"attn_k_norm.weight", &t->k_norm},
        {"attn_q.weight", &t->q},
        {"attn_k.weight", &t->k},
        {"attn_v.weight", &t->v},
        {"attn_q.bias", &t->q_bias},
        {"attn_k.bias", &t->k_bias},
        {"attn_v.bias", &t->v_bias},
        {"attn_output.weight", &t->o},
        {"ffn_gate.weight", &t->gate},
        {"ffn_up.weight", &t->up},
        {"ffn_down.weight", &t->down},
    };
    char name[64];
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        snprintf(name, sizeof(name), "blk.%u.%s", layer, parts[i].name);
        *parts[i].tensor = model_file_tensor(file, name);
    }
}

/* Scratch for the rows of any matrix. */
static struct row_source *alloc_rows(const struct model_params *p, uint32_t head_pad)
{
    uint32_t most = (p->n_heads + 2 * p->n_kv_heads) * head_pad;
    const uint32_t others[] = {p->hidden, 2 * round_up(p->mlp, KERNEL_TILE), p->vocab_size};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        most = most > others[i] ? most : others[i];
    return mem_array(round_up(most, KERNEL_TILE), sizeof(struct row_source));
}

int model_pack_layer(struct model *model, uint32_t layer, const struct layer_tensors *tensors,
                     struct error *err)
{
    _cleanup_mem_ struct row_source *rows = alloc_rows(&model->params, model->head_pad);
    return rows ? pack_layer(model, layer, tensors, rows, err)
                : error_memory(err, "packing scratch", model->params.vocab_size);
}

static int open_rope(struct model *model, struct error *err)
{
    const struct model_params *p = &model->params;
    size_t half = p->rope_dim / 2;
    size_t n;

    if (!mem_mul(model->n_positions, half, &n))
        return error_memory(err, "RoPE tables", model->n_positions);
    model->rope_cos = mem_array(n, sizeof(float));
    model->rope_sin = mem_array(n, sizeof(float));
    if (!model->rope_cos || !model->rope_sin)
        return error_memory(err, "RoPE tables", 2 * n * sizeof(float));
    for (size_t pos = 0; pos < model->n_positions; pos++) {
        for (size_t i = 0; i < half; i++) {
            double angle = (double)pos * (double)p->rope_inv_freq[i];
            model->rope_cos[pos * half + i] = (float)cos(angle);
            model->rope_sin[pos * half + i] = (float)sin(angle);
        }
    }
    return 0;
}

/* The head, the largest matrix by far: its pages of the file go as it is packed, so that the two
 * are never in memory together. */
static int pack_head(struct model *model, const struct tensor *t, struct row_source *rows,
                     struct error *err)
{
    enum { WINDOW = 256 }; /* tiles */
    uint32_t n_rows = plain_rows(t, rows);
    size_t n_tiles = n_rows / KERNEL_TILE;
    size_t window_bytes = t->bytes / t->dims[1] * WINDOW * KERNEL_TILE;
    int rc = alloc(model, rows, n_rows, (uint32_t)t->dims[0], &model->head, err);
    for (size_t tile = 0; tile < n_tiles && rc == 0 && !model->arena.given; tile += WINDOW) {
        size_t end = tile + WINDOW < n_tiles ? tile + WINDOW : n_tiles;
        rc = matrix_fill(&model->head, rows, tile, end, err);
        size_t done = end == n_tiles ? t->bytes : (tile / WINDOW + 1) * window_bytes;
        mapped_file_forget(t->data, done);
    }
    return rc;
}

/* What is packed is not held twice. */
void model_forget_layer(const struct layer_tensors *tensors)
{
    const struct layer_tensors *t = tensors;
    const struct tensor *const packed[] = {t->q, t->k, t->v, t->o, t->gate, t->up, t->down};
    for (size_t i = 0; i < sizeof(packed) / sizeof(packed[0]); i++)
        mapped_file_forget(packed[i]->data, packed[i]->bytes);
}

static int open_layers(struct model *model, struct row_source *rows,
                       const struct model_open_options *o, struct error *err)
{
    uint32_t n = model->params.n_layers;
    int rc = 0;
    for (uint32_t l = 0; l < n && rc == 0; l++) {
        struct layer_tensors tensors;
        if (o->progress && !model->arena.given)
            o->progress(o->progress_user, (double)l / (n + 1));
        layer_tensors_find(model->file, l, &tensors);
        rc = pack_layer(model, l, &tensors, rows, err);
        model_forget_layer(&tensors);
    }
    return rc;
}

/* Embedding rows: those of the head, of the cache, or of the file. */
static int open_embedding(struct model *model, const struct tensor *t, struct error *err)
{
    if (model->params.tied && matrix_keeps_exactly(model->head.type, t->type))
        return 0;
    model->embedding = t;
    if (!model->arena.given)
        return 0;
    model->cached_embedding = *t;
    model->cached_embedding.data = weight_arena_take(&model->arena, t->bytes);
    model->embedding = &model->cached_embedding;
    return model->cached_embedding.data
               ? 0
               : error_set(err, ERROR_FORMAT, "packed weights end before the embedding");
}

static int open_matrices(struct model *model, const struct model_open_options *o, struct error *err)
{
    const struct model_params *p = &model->params;
    const struct tensor *norm = model_file_tensor(model->file, "output_norm.weight");
    const struct tensor *embedding = model_file_tensor(model->file, "token_embd.weight");
    const struct tensor *head =
        p->tied ? embedding : model_file_tensor(model->file, "output.weight");
    _cleanup_mem_ struct row_source *rows = alloc_rows(p, model->head_pad);
    mem_free(model->output_norm);
    model->output_norm = load_vector(norm, p->hidden);
    if (!rows || !model->output_norm)
        return error_memory(err, "model tables", p->vocab_size);

    int rc = open_layers(model, rows, o, err);
    if (rc == 0)
        rc = pack_head(model, head, rows, err);
    if (rc == 0)
        rc = open_embedding(model, embedding, err);
    if (rc)
        return rc;
    if (model->arena.given && model->arena.used != model->arena.size)
        return error_set(err, ERROR_FORMAT, "packed weights go on behind the last matrix");
    model->held_bytes = model->packed_bytes + (model->embedding ? embedding->bytes : 0);
    if (o->progress)
        o->progress(o->progress_user, 1);
    return 0;
}

static struct packed_cache_key cache_key(const struct model *model)
{
    return (struct packed_cache_key){
        .file_hash = model->file_hash,
        .file_bytes = model_file_bytes(model->file),
        .modified_ns = model_file_modified_ns(model->file),
        .weights = model->weights,
    };
}

static double seconds_since(uint64_t begin_ns)
{
    return (double)(system_now_ns() - begin_ns) / 1e9;
}

/* Are the weights in the cache? */
static bool find_cache(struct model *model, const struct model_open_options *o)
{
    struct packed_cache_key key = cache_key(model);
    uint64_t begin = system_now_ns();
    struct error why;
    if (packed_cache_open(o->packed_cache, &key, o->progress, o->progress_user, &model->arena,
                          &why)) {
        log_warn("packed-cache: made anew: %s", why.message);
        return false;
    }
    if (model->arena.given)
        log_info("packed-cache: found the weights of %s, %zu MiB, in %.1f s",
                 model_file_path(model->file), model->arena.size >> 20, seconds_since(begin));
    return model->arena.given;
}

/* In the order in which they are packed. */
static void keep_cache(const struct model *model, const char *dir)
{
    size_t n_layers = model->params.n_layers, n = 0, bytes;
    struct packed_cache_key key = cache_key(model);
    uint64_t begin = system_now_ns();
    struct error why;
    _cleanup_mem_ struct packed_part *parts = mem_array(4 * n_layers + 2, sizeof(*parts));
    int rc = parts ? 0 : error_memory(&why, "list of weights", n_layers);
    for (size_t l = 0; l < n_layers && rc == 0; l++) {
        const struct layer *layer = &model->layers[l];
        const struct matrix *const all[] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
        for (size_t i = 0; i < 4; i++)
            parts[n++] = (struct packed_part){all[i]->data, matrix_bytes(all[i])};
    }
    if (rc == 0)
        parts[n++] = (struct packed_part){model->head.data, matrix_bytes(&model->head)};
    if (rc == 0 && model->embedding)
        parts[n++] = (struct packed_part){model->embedding->data, model->embedding->bytes};
    if (rc == 0)
        rc = packed_cache_write(dir, &key, parts, n, &bytes, &why);
    if (rc)
        log_warn("packed-cache: the weights are not kept: %s", why.message);
    else
        log_info("packed-cache: kept the weights of %s, %zu MiB, in %.1f s",
                 model_file_path(model->file), bytes >> 20, seconds_since(begin));
}

/* The strings of a vocabulary that stand in the mapped file: from the first byte to the last. */
static void find_strings(const struct vocab_string *strings, size_t n, const char **first,
                         const char **last)
{
    for (size_t i = 0; i < n; i++) {
        if (strings[i].len == 0)
            continue;
        if (!*first || strings[i].data < *first)
            *first = strings[i].data;
        if (!*last || strings[i].data + strings[i].len > *last)
            *last = strings[i].data + strings[i].len;
    }
}

/* What is read from the file after the model is open must not be lost when somebody cuts it. */
static int keep_what_is_read(const struct model *model, struct error *err)
{
    const struct vocab *vocab = model_file_vocab(model->file);
    const char *first = NULL, *last = NULL;
    int rc = 0;

    if (model->embedding && !model->arena.given)
        rc = mapped_file_keep(model->embedding->data, model->embedding->bytes, err);
    if (rc || vocab->storage)
        return rc;
    find_strings(vocab->text, vocab->n_tokens, &first, &last);
    find_strings(vocab->merges, vocab->n_merges, &first, &last);
    return first ? mapped_file_keep(first, (size_t)(last - first), err) : 0;
}

/* Samples of every tensor; the pages around them are not needed again. */
static void hash_file(struct model *model)
{
    model->file_hash = model_file_hash(model->file);
    for (size_t i = 0; i < model_file_n_tensors(model->file); i++) {
        const struct tensor *t = model_file_tensor_at(model->file, i);
        mapped_file_forget(t->data, t->bytes);
    }
}

int model_open_empty(const struct model_params *params, enum model_weights weights,
                     uint32_t n_positions, struct model **ret_model, struct error *err)
{
    struct model *model = mem_calloc(1, sizeof(*model));
    if (!model)
        return error_memory(err, "model", sizeof(*model));
    model->params = *params;
    model->weights = weights;
    model->quantized = weights != MODEL_WEIGHTS_F32;
    model->head_pad = round_up(params->head_dim, KERNEL_TILE);
    model->n_positions = n_positions;
    model->layers = mem_calloc(params->n_layers, sizeof(*model->layers));
    int rc =
        model->layers ? open_rope(model, err) : error_memory(err, "model tables", params->n_layers);
    if (rc) {
        model_close(model);
        return rc;
    }
    *ret_model = model;
    return 0;
}

static int open_weights(struct model *model, const struct model_open_options *o, struct error *err)
{
    bool found = o->packed_cache && find_cache(model, o);
    int rc = open_matrices(model, o, err);
    if (found && rc == -ERROR_FORMAT) {
        log_warn("packed-cache: made anew: %s: %s", o->packed_cache, err->message);
        found = false;
        model_drop_layers(model);
        rc = open_matrices(model, o, err);
    }
    if (rc == 0)
        rc = keep_what_is_read(model, err);
    if (rc == 0 && o->packed_cache && !found)
        keep_cache(model, o->packed_cache);
    return rc;
}

int model_open(struct model_file *file, const struct model_open_options *options,
               struct model **ret_model, struct error *err)
{
    struct model *model;
    int rc = model_open_empty(model_file_params(file), options->weights, options->n_positions,
                              &model, err);
    if (rc) {
        model_file_close(file);
        return rc;
    }
    model->file = file;
    model->coarse = options->coarse;
    hash_file(model);
    rc = open_weights(model, options, err);
    if (rc) {
        error_prefix(err, "%s", model_file_path(file));
        model_close(model);
        return rc;
    }
    *ret_model = model;
    return 0;
}

void model_drop_layers(struct model *model)
{
    for (uint32_t l = 0; model->layers && l < model->params.n_layers; l++) {
        struct layer *layer = &model->layers[l];
        mem_free(layer->attn_norm);
        mem_free(layer->mlp_norm);
        mem_free(layer->q_norm);
        mem_free(layer->k_norm);
        mem_free(layer->qkv_bias);
        *layer = (struct layer){0};
    }
    weight_arena_free(&model->arena);
    model->packed_bytes = 0;
}

void model_close(struct model *model)
{
    if (!model)
        return;
    model_drop_layers(model);
    mem_free(model->layers);
    mem_free(model->output_norm);
    mem_free(model->rope_cos);
    mem_free(model->rope_sin);
    model_file_close(model->file);
    mem_free(model);
}

void model_embed(const struct model *model, int32_t token, float *out)
{
    const struct tensor *t = model->embedding;
    if (!t) {
        matrix_unpack_row(&model->head, (uint32_t)token, out);
        return;
    }
    size_t row_bytes = t->bytes / t->dims[1];
    tensor_dequantize(t->type, (const uint8_t *)t->data + (size_t)token * row_bytes,
                      model->params.hidden, out);
}
