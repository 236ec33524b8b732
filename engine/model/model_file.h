/* A model on disk, seen the same way whether it is a GGUF file or a Hugging Face folder
 * (config.json, model*.safetensors with an optional index, tokenizer.json): parameters, vocabulary
 * and tensors under their GGUF names ("token_embd.weight", "blk.0.attn_q.weight",
 * "blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "output_norm.weight", "output.weight", ...).
 * The file stays mapped read-only; nothing is converted here. After a successful open every shape
 * that the architecture needs has been checked against the parameters.
 * Not here: packing for the kernels (model.h). */
#ifndef OVERFILL_ENGINE_MODEL_MODEL_FILE_H
#define OVERFILL_ENGINE_MODEL_MODEL_FILE_H

#include "engine/base/error.h"
#include "engine/model/tensor.h"
#include "engine/tokenizer/vocab.h"

enum model_arch { MODEL_LLAMA, MODEL_QWEN2, MODEL_QWEN3 };
const char *model_arch_name(enum model_arch arch); /* as GGUF's general.architecture has it */

/* Which elements of a head RoPE rotates together, in THIS file's row order of q and k. */
enum rope_pairs {
    ROPE_INTERLEAVED, /* (2i, 2i+1): GGUF files of the llama architecture */
    ROPE_HALVES,      /* (i, i + rot/2): Hugging Face folders; GGUF files of qwen2, qwen3 */
};

#define MODEL_MAX_HEAD_DIM 512

struct model_params {
    enum model_arch arch;
    char name[96]; /* general.name, or the file's name */
    uint32_t n_layers;
    uint32_t hidden; /* width of the residual stream (embedding_length) */
    uint32_t
        norm_width; /* true width the RMSNorm mean divides by: hidden, unless the file is padded */
    uint32_t mlp;   /* feed_forward_length */
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim; /* key_length = value_length; n_heads * head_dim may differ from hidden */
    uint32_t rope_dim; /* elements of a head that RoPE rotates, <= head_dim, even */
    uint32_t vocab_size;
    uint32_t context_train; /* tokens */
    float rms_eps;
    float rope_theta;
    enum rope_pairs rope_pairs;
    /* Rotation per position for each pair, in radians: inv_freq[i] = theta^(-2i/rope_dim), after
     * the file's scaling (none, linear, llama3) has been applied. [rope_dim / 2] */
    float rope_inv_freq[MODEL_MAX_HEAD_DIM / 2];
    bool tied; /* no output.weight: the head is token_embd.weight */
    bool has_qkv_bias;
    bool has_qk_norm; /* RMSNorm over head_dim of q and k before RoPE (qwen3) */
};

struct gguf_file;
struct gguf_writer;
struct model_file;

/* path: a .gguf file or a folder. Logs nothing. */
int model_file_open(const char *path, struct model_file **ret_file, struct error *err);
void model_file_close(struct model_file *file); /* NULL is fine */

const char *model_file_path(const struct model_file *file);
const struct model_params *model_file_params(const struct model_file *file);
const struct vocab *model_file_vocab(const struct model_file *file);
/* The GGUF file behind it, for its metadata (gguf.h); NULL for a folder. */
const struct gguf_file *model_file_gguf(const struct model_file *file);
size_t model_file_bytes(const struct model_file *file); /* on disk */
/* When its weights were last changed, as the file system says: nanoseconds since 1970. */
int64_t model_file_modified_ns(const struct model_file *file);
uint64_t model_file_n_params(const struct model_file *file); /* elements of all tensors */
/* FNV-1a 64 over parameters, tensor table and a sample of every tensor's bytes: tells files apart
 * in fingerprints and caches; not a cryptographic hash. */
uint64_t model_file_hash(const struct model_file *file);

/* NULL when the file has none of that name. Owned by the file. */
const struct tensor *model_file_tensor(const struct model_file *file, const char *name);
size_t model_file_n_tensors(const struct model_file *file);
const struct tensor *model_file_tensor_at(const struct model_file *file, size_t i);

/* For a GGUF file of the same model (gguf_write.h): its metadata, to the last word on which the
 * caller may change single entries. */
void model_file_describe(const struct model_file *file, struct gguf_writer *writer);
/* Its q and k rows (and biases): row `row` there is which row here? GGUF's llama has RoPE's pairs
 * side by side. */
uint32_t model_file_gguf_row(const struct model_file *file, uint32_t row);
/* Its tensor rope_freqs.weight [rope_dim / 2], what RoPE's frequencies are divided by, if it needs
 * one that is not among the tensors here; false if not. */
bool model_file_rope_divisors(const struct model_file *file, float *ret_divisors);

/* 0 when `twin` can decode on the KV that `full` wrote: same layers, KV heads, heads, head_dim,
 * RoPE, vocabulary and tokenizer. Otherwise ERROR_INVALID naming the first mismatch with both
 * values. What differs and does no harm, special tokens and the chat template (the full model's
 * count), is named in *ret_warning; its code is ERROR_NONE when there is nothing to say. */
int model_file_check_pair(const struct model_file *full, const struct model_file *twin,
                          struct error *ret_warning, struct error *err);

#endif
