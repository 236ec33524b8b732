/* A Hugging Face folder as a model file: config.json, the safetensors (one file, or the shards that
 * an index lists), and the tokenizer. Tensors get their GGUF names; their rows stay in Hugging
 * Face's order (ROPE_HALVES). See model_file_internal.h. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/model/hf.h"
#include "engine/model/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAX_CONFIG_BYTES ((size_t)4 << 20)
#define MAX_INDEX_BYTES ((size_t)32 << 20)
#define MAX_SHARDS 1000

struct hf_folder {
    cJSON *config;
    cJSON *index; /* owns the shards' names; NULL for a single file */
    const char *names[MAX_SHARDS];
    struct safetensors *shards[MAX_SHARDS];
    size_t n_shards;
    struct tensor *tensors;
};

/* Both sides after "model.layers.N." and "blk.N.". */
static const char *const layer_names[][2] = {
    {"input_layernorm.weight", "attn_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
};

static const char *const global_names[][2] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* false: a name that has no GGUF counterpart. */
static bool name_as_gguf(const char *name, char ret[64])
{
    uint32_t layer;
    int used = 0;

    for (size_t i = 0; i < COUNT(global_names); i++) {
        if (strcmp(name, global_names[i][0]) == 0) {
            snprintf(ret, 64, "%s", global_names[i][1]);
            return true;
        }
    }
    if (sscanf(name, "model.layers.%4" SCNu32 ".%n", &layer, &used) != 1 || !used)
        return false;
    for (size_t i = 0; i < COUNT(layer_names); i++) {
        if (strcmp(name + used, layer_names[i][0]) == 0) {
            snprintf(ret, 64, "blk.%" PRIu32 ".%s", layer, layer_names[i][1]);
            return true;
        }
    }
    return false;
}

/* Saved by old versions of transformers; follows from the configuration. */
static bool is_derived(const char *name)
{
    static const char end[] = ".rotary_emb.inv_freq";
    size_t len = strlen(name);
    return len >= sizeof(end) && strcmp(name + len - (sizeof(end) - 1), end) == 0;
}

/* Adds a tensor to the model's table, or leaves out what needs no place there. */
static int take_tensor(struct model_file *file, const struct safetensor *s, bool tied,
                       struct error *err)
{
    struct tensor *t = &file->hf->tensors[file->n_tensors];

    if (is_derived(s->name) || (tied && strcmp(s->name, "lm_head.weight") == 0))
        return 0;
    if (!name_as_gguf(s->name, t->name))
        return error_set(err, ERROR_UNSUPPORTED,
                         "tensor %.80s: no part of the model that config.json describes", s->name);
    if (s->type < 0)
        return error_set(err, ERROR_UNSUPPORTED,
                         "tensor %.80s: type F32, F16 or BF16 expected, found %.20s", s->name,
                         s->dtype);
    t->type = (enum tensor_type)s->type;
    t->n_dims = s->n_dims;
    memcpy(t->dims, s->dims, sizeof(t->dims));
    t->data = s->data;
    t->bytes = s->bytes;
    file->n_tensors++;
    return 0;
}

static int take_tensors(struct model_file *file, bool tied, struct error *err)
{
    struct hf_folder *hf = file->hf;
    bool has_head = false;
    size_t n = 0;

    for (size_t i = 0; i < hf->n_shards; i++)
        n += safetensors_n(hf->shards[i]);
    hf->tensors = mem_calloc(n + 1, sizeof(*hf->tensors));
    if (!hf->tensors)
        return error_memory(err, "tensor table", n * sizeof(*hf->tensors));
    file->tensors = hf->tensors;
    for (size_t i = 0; i < hf->n_shards; i++) {
        int64_t modified_ns = safetensors_modified_ns(hf->shards[i]);
        file->bytes += safetensors_bytes(hf->shards[i]);
        file->modified_ns = modified_ns > file->modified_ns ? modified_ns : file->modified_ns;
        for (size_t k = 0; k < safetensors_n(hf->shards[i]); k++) {
            const struct safetensor *s = safetensors_at(hf->shards[i], k);
            if (take_tensor(file, s, tied, err))
                return error_prefix(err, "%s/%s", file->path, hf->names[i]);
            has_head |= strcmp(s->name, "lm_head.weight") == 0;
        }
    }
    if (!tied && !has_head)
        return error_set(
            err, ERROR_FORMAT,
            "%s: tensor lm_head.weight: missing, though config.json does not tie it to "
            "the embedding",
            file->path);
    return 0;
}

/* An index is text from elsewhere: it must not lead out of its folder. */
static bool is_plain_name(const char *name)
{
    static const char end[] = ".safetensors";
    size_t len = strlen(name);
    return name[0] != '.' && !strpbrk(name, "/\\") && len >= sizeof(end) &&
           strcmp(name + len - (sizeof(end) - 1), end) == 0;
}

static int add_name(struct hf_folder *hf, const char *name, struct error *err)
{
    for (size_t i = 0; i < hf->n_shards; i++)
        if (strcmp(hf->names[i], name) == 0)
            return 0;
    if (!is_plain_name(name))
        return error_set(
            err, ERROR_FORMAT,
            "key weight_map: names of .safetensors files in this folder expected, found "
            "%.80s",
            name);
    if (hf->n_shards == MAX_SHARDS)
        return error_set(err, ERROR_UNSUPPORTED, "key weight_map: at most %d files expected",
                         MAX_SHARDS);
    hf->names[hf->n_shards++] = name;
    return 0;
}

/* Which files hold the weights? n_shards counts names here; the shards are opened afterwards. */
static int list_shards(const char *path, struct hf_folder *hf, struct error *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    int rc = json_file_read(path, index_name, MAX_INDEX_BYTES, &hf->index, err);
    if (rc)
        return rc;
    if (!hf->index)
        return add_name(hf, "model.safetensors", err);
    const cJSON *map = json_object(hf->index, "weight_map");
    if (!map || !map->child)
        rc = error_set(err, ERROR_FORMAT, "key weight_map: an object expected");
    for (const cJSON *item = map ? map->child : NULL; item && rc == 0; item = item->next)
        rc = add_name(hf, cJSON_IsString(item) ? item->valuestring : "", err);
    return rc ? error_prefix(err, "%s/%s", path, index_name) : 0;
}

static int open_shard(const char *path, const char *name, struct safetensors **ret,
                      struct error *err)
{
    _cleanup_buf_ struct buf shard_path = {0};
    buf_append_str(&shard_path, path);
    buf_append_str(&shard_path, "/");
    buf_append_str(&shard_path, name);
    return shard_path.failed ? error_memory(err, "path", strlen(path))
                             : safetensors_open(shard_path.data, ret, err);
}

static int open_shards(const char *path, struct hf_folder *hf, struct error *err)
{
    int rc = list_shards(path, hf, err);
    for (size_t i = 0; i < hf->n_shards && rc == 0; i++)
        rc = open_shard(path, hf->names[i], &hf->shards[i], err);
    return rc;
}

int hf_folder_open(const char *path, struct model_file *file, struct error *err)
{
    bool tied = false;

    file->hf = mem_calloc(1, sizeof(*file->hf));
    if (!file->hf)
        return error_memory(err, "folder", sizeof(*file->hf));
    int rc = json_file_read(path, "config.json", MAX_CONFIG_BYTES, &file->hf->config, err);
    if (rc)
        return rc;
    if (!file->hf->config)
        return error_set(err, ERROR_INVALID,
                         "%s: a .gguf file or a folder with config.json expected", path);
    rc = hf_read_config(file->hf->config, &file->params, &file->scaling, &tied, err);
    if (rc)
        return error_prefix(err, "%s/config.json", path);
    rc = open_shards(path, file->hf, err);
    return rc ? rc : take_tensors(file, tied, err);
}

int hf_folder_read_vocab(struct model_file *file, struct error *err)
{
    return hf_read_vocab(file->path, file->hf->config, file->params.vocab_size, &file->vocab, err);
}

void hf_folder_close(struct hf_folder *folder)
{
    if (!folder)
        return;
    for (size_t i = 0; i < folder->n_shards; i++)
        safetensors_close(folder->shards[i]);
    cJSON_Delete(folder->index);
    cJSON_Delete(folder->config);
    mem_free(folder->tensors);
    mem_free(folder);
}
