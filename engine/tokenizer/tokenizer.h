/* Text to token ids and back. Immutable after open: every function may be called from any thread.
 * Byte-level BPE with the pre-tokeniser patterns of smollm, gpt-2, llama-bpe, qwen2, starcoder and
 * falcon (PCRE2), and SentencePiece BPE with byte fallback. Reference for the ids: llama.cpp's
 * vocabularies. An unknown pre-tokeniser is ERROR_UNSUPPORTED and names it. */
#ifndef OVERFILL_ENGINE_TOKENIZER_TOKENIZER_H
#define OVERFILL_ENGINE_TOKENIZER_TOKENIZER_H

#include "engine/base/error.h"
#include "engine/tokenizer/vocab.h"

#include <stddef.h>

struct tokenizer;

/* Growable list of ids. Zero-initialise; token_list_free when done. */
struct token_list {
    int32_t *ids;
    size_t n;
    size_t cap;
};
int token_list_append(struct token_list *list, const int32_t *ids, size_t n, struct error *err);
void token_list_free(struct token_list *list);

/* `vocab` must outlive the tokenizer. */
int tokenizer_open(const struct vocab *vocab, struct tokenizer **ret_tokenizer, struct error *err);
void tokenizer_close(struct tokenizer *tokenizer);
const struct vocab *tokenizer_vocab(const struct tokenizer *tokenizer);

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1, /* bos (and eos) as the vocabulary asks */
    TOKENIZER_PARSE_SPECIAL =
        2, /* text of control tokens becomes these tokens; never for user text */
};
/* Appends the ids of text[len] (any bytes; invalid UTF-8 is encoded byte by byte). O(len log len).
 */
int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                     unsigned flags, struct token_list *list, struct error *err);

/* The bytes that a token stands for (may be part of a UTF-8 character; control tokens give their
 * text, e.g. "<|im_end|>"). Owned by the tokenizer. NULL for an id out of range. */
const char *tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, size_t *ret_len);
bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id);
/* End of generation: eos, eot and the usual end-of-turn control tokens (<|im_end|>, <|eot_id|>,
 * <end_of_turn>, </s>, <|endoftext|>, ...). */
bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id);

/* FNV-1a 64 over pieces, kinds, merges and scores: equal for vocabularies that tokenise alike. */
uint64_t tokenizer_hash(const struct tokenizer *tokenizer);

#endif
