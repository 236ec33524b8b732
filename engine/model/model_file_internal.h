/* What the two readers of model files (GGUF, Hugging Face folder) share. Only engine/model includes
 * this. Order of filling: parameters from metadata, then the vocabulary, then the tensor index,
 * then model_file_check, which completes the parameters from the tensors. */
#ifndef OVERFILL_ENGINE_MODEL_MODEL_FILE_INTERNAL_H
#define OVERFILL_ENGINE_MODEL_MODEL_FILE_INTERNAL_H

#include "engine/model/gguf.h"
#include "engine/model/model_file.h"

struct hf_folder;

/* RoPE scaling as the metadata gives it. */
enum rope_scaling_type { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3 };
struct rope_scaling {
    enum rope_scaling_type type;
    float factor;
    /* llama3 only; source: modeling_rope_utils of transformers, section "llama3" */
    float low_freq_factor, high_freq_factor;
    uint32_t original_context; /* tokens */
};

struct model_file {
    char *path;
    struct model_params params;
    struct rope_scaling scaling;
    struct vocab vocab;
    size_t bytes;
    int64_t modified_ns; /* of the file changed last */
    uint64_t n_params;
    size_t n_tensors;
    const struct tensor *tensors;  /* gguf's or hf's */
    const struct tensor **by_name; /* sorted */
    struct gguf_file *gguf;        /* one of the two is NULL */
    struct hf_folder *hf;
};

/* general.* and the architecture's keys to params (all but tied, has_*, vocab_size, rope_inv_freq)
 * and scaling. */
int gguf_read_params(const struct gguf_file *gguf, struct model_params *params,
                     struct rope_scaling *scaling, struct error *err);

/* config.json and the safetensors of a folder; fills params, scaling, tensors, bytes and hf of
 * `file`.
 */
int hf_folder_open(const char *path, struct model_file *file, struct error *err);
/* tokenizer.json to vocab. Called after model_file_check: the vocabulary then has a size that the
 * embedding really has. */
int hf_folder_read_vocab(struct model_file *file, struct error *err);
void hf_folder_close(struct hf_folder *folder); /* NULL is fine */

/* Ranges of every number, every tensor's shape, no tensor too many, RoPE frequencies. */
int model_file_check(struct model_file *file, struct error *err);

#endif
