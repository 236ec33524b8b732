/* expected.json of a folder of tests/data/tiny: what transformers computes from it. */
#ifndef OVERFILL_TESTS_UNIT_PRUNE_EXPECTED_H
#define OVERFILL_TESTS_UNIT_PRUNE_EXPECTED_H

#include <stddef.h>
#include <stdint.h>

struct expected {
    char *text;
    int32_t
        *text_tokens; /* [n_text_tokens] the ids of text, with bos where the tokenizer adds it */
    size_t n_text_tokens;
    uint32_t n_tokens;  /* the first so many were fed to the model */
    uint32_t n_prefill; /* at once, then one a step */
    uint32_t n_vocab;
    float *logits; /* [n_tokens][n_vocab] */
};

void expected_read(const char *folder, struct expected *ret_expected);
void expected_free(struct expected *expected);

#endif
