/* A vocabulary as it stands in a model file: plain data, no behaviour. Filled by the file readers
 * (GGUF metadata, tokenizer.json), read by the tokenizer. Owned by whoever filled it. */
#ifndef OVERFILL_ENGINE_TOKENIZER_VOCAB_H
#define OVERFILL_ENGINE_TOKENIZER_VOCAB_H

#include <stdbool.h>
#include <stdint.h>

enum vocab_model { VOCAB_BPE /* GGUF "gpt2" */, VOCAB_SPM /* GGUF "llama" */ };

/* Numbers as in GGUF's tokenizer.ggml.token_type. */
enum token_kind {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

struct vocab_string {
    const char *data; /* not NUL-terminated */
    uint32_t len;     /* bytes */
};

struct vocab {
    enum vocab_model model;
    char pre[32]; /* GGUF tokenizer.ggml.pre: "smollm", "gpt-2", "llama-bpe", "qwen2", ...;
                     "default" */
    uint32_t n_tokens;
    struct vocab_string
        *text;     /* [n_tokens] as stored: byte-level BPE text, or SPM pieces with U+2581 */
    float *score;  /* [n_tokens]; SPM only, NULL for BPE */
    uint8_t *kind; /* [n_tokens] enum token_kind */
    uint32_t n_merges;
    struct vocab_string *merges;     /* [n_merges] "left right", best first; BPE only */
    int32_t bos, eos, eot, unk, pad; /* token ids, -1 for none */
    bool add_bos;                    /* put bos in front of a plain prompt */
    bool add_eos;
    bool add_space_prefix; /* SPM: a space in front of the text */
    char *chat_template;   /* Jinja source as in the file, or NULL */
    void *storage;         /* one allocation the strings may point into, or NULL (mapped file) */
};

void vocab_free(struct vocab *vocab); /* frees the arrays, chat_template and storage, not *vocab */

#endif
