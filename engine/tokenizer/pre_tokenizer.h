/* Cutting text into the words inside which byte-level BPE merges: the regular expressions that each
 * tokenizer family was trained with, run by PCRE2. Immutable, any thread.
 * Not here: merging (merge.h), special tokens (special.h). */
#ifndef OVERFILL_ENGINE_TOKENIZER_PRE_TOKENIZER_H
#define OVERFILL_ENGINE_TOKENIZER_PRE_TOKENIZER_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct pre_tokenizer;

/* name: as in GGUF's tokenizer.ggml.pre. ERROR_UNSUPPORTED names it and the known ones. */
int pre_tokenizer_open(const char *name, struct pre_tokenizer **ret, struct error *err);
void pre_tokenizer_close(struct pre_tokenizer *pre);
/* A word that is a token as a whole is taken without merging (Llama 3's tokenizer). */
bool pre_tokenizer_ignores_merges(const struct pre_tokenizer *pre);

/* Calls `word` for every word of text[len] in order; together they are the text. A byte that is not
 * part of valid UTF-8 is a word of its own. Stops at the first error of `word` and returns it. */
typedef int pre_tokenizer_word_fn(void *user, const char *word, size_t len, struct error *err);
int pre_tokenizer_split(const struct pre_tokenizer *pre, const char *text, size_t len,
                        pre_tokenizer_word_fn *word, void *user, struct error *err);

#endif
