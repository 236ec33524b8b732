/* Freeing a vocabulary. See vocab.h. */
#include "engine/tokenizer/vocab.h"

#include "engine/base/mem.h"

void vocab_free(struct vocab *vocab)
{
    mem_free(vocab->text);
    mem_free(vocab->score);
    mem_free(vocab->kind);
    mem_free(vocab->merges);
    mem_free(vocab->chat_template);
    mem_free(vocab->storage);
    *vocab = (struct vocab){.bos = -1, .eos = -1, .eot = -1, .unk = -1, .pad = -1};
}
