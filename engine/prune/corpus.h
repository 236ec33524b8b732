/* Training and calibration text as documents of token ids. A text file is one document; of a JSONL
 * file each row (`messages`, `prompt` and `completion`, or `text`) is one, and rows that share
 * their longest line count once, since they tell of the same thing. Messages go through the chat
 * template, and the last one is the answer. Either kind may be gzipped. */
#ifndef OVERFILL_ENGINE_PRUNE_CORPUS_H
#define OVERFILL_ENGINE_PRUNE_CORPUS_H

#include "engine/base/error.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

#define CORPUS_LONG_TOKENS 512 /* rows of so many are taken before shorter ones */

/* How text becomes tokens. */
struct corpus_text {
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL: rows of messages are refused */
};

struct corpus {
    const char *path;
    struct corpus_text how;
    size_t n_tokens; /* wanted: of a longer file a part is taken that is likely to hold as many */
    /* Called for each document in the file's order. n_prompt: tokens before the answer, 0 where the
     * row does not tell. *ret_enough: no more are wanted. */
    int (*each)(void *user, const struct token_list *ids, size_t n_prompt, bool *ret_enough,
                struct error *err);
    void *user;
};

int corpus_read(const struct corpus *corpus, struct error *err);
/* The template of this name; of no name the model's own, or NULL where that is none we know: plain
 * text needs none. Static storage. */
int corpus_find_template(const char *name, const struct vocab *vocab,
                         const struct chat_template **ret_template, struct error *err);

#endif
