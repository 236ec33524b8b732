/* Opening a model file of either kind, looking things up in it. See model_file.h. */
#include "engine/model/model_file.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/model/model_file_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int open_gguf(struct model_file *file, struct error *err)
{
    int rc = gguf_open(file->path, &file->gguf, err);
    if (rc)
        return rc;
    rc = gguf_read_params(file->gguf, &file->params, &file->scaling, err);
    if (rc == 0)
        rc = gguf_read_vocab(file->gguf, &file->vocab, err);
    if (rc)
        return error_prefix(err, "%s", file->path);
    file->params.vocab_size = file->vocab.n_tokens;
    file->bytes = gguf_bytes(file->gguf);
    file->modified_ns = gguf_modified_ns(file->gguf);
    file->n_tensors = gguf_n_tensors(file->gguf);
    file->tensors = gguf_tensor_at(file->gguf, 0);
    return 0;
}

static int index_tensors(struct model_file *file, struct error *err)
{
    file->by_name = mem_calloc(file->n_tensors + 1, sizeof(void *));
    if (!file->by_name)
        return error_memory(err, "tensor index", file->n_tensors * sizeof(void *));
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct tensor *t = &file->tensors[i];
        file->by_name[i] = t;
        file->n_params += t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
    }
    qsort(file->by_name, file->n_tensors, sizeof(void *), tensor_compare_names);
    for (size_t i = 1; i < file->n_tensors; i++)
        if (tensor_compare_names(&file->by_name[i - 1], &file->by_name[i]) == 0)
            return error_set(err, ERROR_FORMAT, "tensor %s: stands in the files twice",
                             file->by_name[i]->name);
    return 0;
}

/* The last part of the path, for a file that carries no name. */
static void name_after_path(struct model_file *file)
{
    size_t end = strlen(file->path);
    while (end > 1 && file->path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && file->path[start - 1] != '/')
        start--;
    snprintf(file->params.name, sizeof(file->params.name), "%.*s", (int)(end - start),
             file->path + start);
}

static int open_any(struct model_file *file, struct error *err)
{
    struct stat st;
    bool is_folder = stat(file->path, &st) == 0 && S_ISDIR(st.st_mode);
    int rc = is_folder ? hf_folder_open(file->path, file, err) : open_gguf(file, err);
    if (rc)
        return rc;
    if (!file->params.name[0])
        name_after_path(file);
    rc = index_tensors(file, err);
    if (rc == 0)
        rc = model_file_check(file, err);
    if (rc)
        return error_prefix(err, "%s", file->path);
    return is_folder ? hf_folder_read_vocab(file, err) : 0;
}

int model_file_open(const char *path, struct model_file **ret_file, struct error *err)
{
    struct model_file *file = mem_calloc(1, sizeof(*file));
    if (!file)
        return error_memory(err, "model file", sizeof(*file));
    file->path = mem_strdup(path);
    int rc = file->path ? open_any(file, err) : error_memory(err, "path", strlen(path));
    if (rc) {
        model_file_close(file);
        return rc;
    }
    *ret_file = file;
    return 0;
}

void model_file_close(struct model_file *file)
{
    if (!file)
        return;
    vocab_free(&file->vocab);
    mem_free(file->by_name);
    gguf_close(file->gguf);
    hf_folder_close(file->hf);
    mem_free(file->path);
    mem_free(file);
}

const char *model_file_path(const struct model_file *file)
{
    return file->path;
}

const struct model_params *model_file_params(const struct model_file *file)
{
    return &file->params;
}

const struct vocab *model_file_vocab(const struct model_file *file)
{
    return &file->vocab;
}

const struct gguf_file *model_file_gguf(const struct model_file *file)
{
    return file->gguf;
}

size_t model_file_bytes(const struct model_file *file)
{
    return file->bytes;
}

int64_t model_file_modified_ns(const struct model_file *file)
{
    return file->modified_ns;
}

uint64_t model_file_n_params(const struct model_file *file)
{
    return file->n_params;
}

const struct tensor *model_file_tensor(const struct model_file *file, const char *name)
{
    return tensor_find(file->by_name, file->n_tensors, name);
}

size_t model_file_n_tensors(const struct model_file *file)
{
    return file->n_tensors;
}

const struct tensor *model_file_tensor_at(const struct model_file *file, size_t i)
{
    return &file->tensors[i];
}

static uint64_t hash_u32(uint64_t hash, uint32_t value)
{
    return hash_bytes(hash, &value, sizeof(value));
}

static uint64_t hash_params(uint64_t hash, const struct model_params *p)
{
    const uint32_t numbers[] = {p->arch,       p->n_layers,     p->hidden,     p->norm_width,
                                p->mlp,        p->n_heads,      p->n_kv_heads, p->head_dim,
                                p->rope_dim,   p->tied,         p->vocab_size, p->context_train,
                                p->rope_pairs, p->has_qkv_bias, p->has_qk_norm};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        hash = hash_u32(hash, numbers[i]);
    hash = hash_bytes(hash, &p->rms_eps, sizeof(p->rms_eps));
    return hash_bytes(hash, p->rope_inv_freq, p->rope_dim / 2 * sizeof(float));
}

/* Name, type, shape, and SAMPLES stretches of the data, evenly spread from its start to its end. */
static uint64_t hash_tensor(uint64_t hash, const struct tensor *t)
{
    enum { SAMPLES = 8, SAMPLE_BYTES = 64 };
    const uint8_t *data = t->data;

    hash = hash_bytes(hash, t->name, strlen(t->name) + 1);
    hash = hash_u32(hash, t->type);
    hash = hash_bytes(hash, t->dims, sizeof(t->dims));
    if (t->bytes <= SAMPLES * SAMPLE_BYTES)
        return hash_bytes(hash, data, t->bytes);
    for (size_t i = 0; i < SAMPLES; i++)
        hash = hash_bytes(hash, data + (t->bytes - SAMPLE_BYTES) / (SAMPLES - 1) * i, SAMPLE_BYTES);
    return hash;
}

uint64_t model_file_hash(const struct model_file *file)
{
    uint64_t hash = hash_params(HASH_START, &file->params);
    for (size_t i = 0; i < file->n_tensors; i++)
        hash = hash_tensor(hash, file->by_name[i]);
    return hash;
}
