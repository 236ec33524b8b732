/* What the files of this folder share about a tokenizer. */
#ifndef OVERFILL_ENGINE_TOKENIZER_TOKENIZER_INTERNAL_H
#define OVERFILL_ENGINE_TOKENIZER_TOKENIZER_INTERNAL_H

#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/special.h"
#include "engine/tokenizer/token_table.h"
#include "engine/tokenizer/tokenizer.h"

#define SPACE_PIECE "\xe2\x96\x81" /* U+2581: SentencePiece's space */
#define SPACE_PIECE_BYTES 3

struct tokenizer {
    const struct vocab *vocab;
    struct pre_tokenizer *pre; /* NULL for SentencePiece */
    struct text_table by_text; /* tokens that text may become by merging */
    struct merge_table merges; /* BPE: its list; SentencePiece: every pair that makes a token */
    struct special_tokens specials;
    int32_t byte_id[256];    /* BPE: the token of a byte; SentencePiece: its fallback; or -1 */
    bool space_starts_words; /* SentencePiece: no merge joins anything with a space after it */
    uint32_t max_text_bytes; /* of the tokens in by_text */
    char *piece_bytes;       /* all pieces, one after the other */
    size_t *piece_start;     /* [n_tokens + 1] */
    bool *is_control;        /* [n_tokens] */
    bool *is_end;            /* [n_tokens] */
};

/* tokenizer_encode with the special spans given one by one: they cover text[len] in order. Plain
 * text goes on across spans, so that merges do not depend on where template and content meet; a
 * control token must lie inside one special span. */
int tokenizer_encode_spans(const struct tokenizer *tokenizer, const char *text, size_t len,
                           const struct chat_span *spans, size_t n_spans, struct token_list *list,
                           struct error *err);

#endif
