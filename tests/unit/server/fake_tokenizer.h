/* See fake_tokenizer.c. */
#ifndef OVERFILL_TESTS_FAKE_TOKENIZER_H
#define OVERFILL_TESTS_FAKE_TOKENIZER_H

#include "engine/tokenizer/tokenizer.h"

#define FAKE_PAIRS 95
#define FAKE_CONTROL (256 + FAKE_PAIRS * FAKE_PAIRS)
#define FAKE_END (FAKE_CONTROL + 1)
#define FAKE_VOCAB (FAKE_CONTROL + 2)

struct tokenizer *fake_tokenizer_open(void);

#endif
