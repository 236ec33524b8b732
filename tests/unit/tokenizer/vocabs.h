/* Vocabularies for tests: small ones made by hand, and those of files that may be missing. */
#ifndef OVERFILL_TESTS_UNIT_TOKENIZER_VOCABS_H
#define OVERFILL_TESTS_UNIT_TOKENIZER_VOCABS_H

#include "engine/model/gguf.h"
#include "engine/tokenizer/tokenizer.h"

/* A file below $OVERFILL_SHARED or $OVERFILL_MODELS (defaults beside and in the source folder).
 * Skips the running test with a printed reason when it is not there. */
const char *find_shared(const char *name, char *path, size_t size);
const char *find_model(const char *name, char *path, size_t size);
/* The whole file; the caller frees. */
char *read_file(const char *path, size_t *ret_len);

struct loaded {
    struct gguf_file *file;
    struct vocab vocab;
    struct tokenizer *tokenizer;
};
void load(const char *path, struct loaded *ret);
void unload(struct loaded *loaded);

/* A vocabulary by hand: the caller gives tokens as text and kind, NULL-terminated, and merges. */
struct token {
    const char *text;
    enum token_kind kind;
    float score;
};
void make_vocab(struct vocab *vocab, enum vocab_model model, const char *pre,
                const struct token *tokens, const char *const *merges);
/* All 256 bytes of byte-level BPE, then `extra` tokens, then merges. */
void make_byte_vocab(struct vocab *vocab, const char *pre, const struct token *extra,
                     const char *const *merges);
struct tokenizer *open_tokenizer(const struct vocab *vocab);
void close_vocab(struct vocab *vocab, struct tokenizer *tokenizer);

/* Ids of a text; the caller frees the list. */
struct token_list encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                         unsigned flags);
/* Fails unless the pieces of the ids, one after the other, are text[len]. */
void assert_pieces(const struct tokenizer *tokenizer, const struct token_list *list,
                   const char *text, size_t len);
/* Fails unless encoding gives these ids, -1-terminated. */
void assert_ids(const struct tokenizer *tokenizer, const char *text, unsigned flags,
                const int32_t *ids);

#endif
