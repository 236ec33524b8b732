/* The parts of the reader of Hugging Face folders. Only hf_*.c include this. */
#ifndef OVERFILL_ENGINE_MODEL_HF_H
#define OVERFILL_ENGINE_MODEL_HF_H

#include "engine/model/json_file.h"
#include "engine/model/model_file_internal.h"

/* config.json to params (all but name, has_*, rope_inv_freq), scaling and whether the head is the
 * embedding. Settings that this program does not do are refused by name. */
int hf_read_config(const cJSON *config, struct model_params *params, struct rope_scaling *scaling,
                   bool *ret_tied, struct error *err);

/* tokenizer.json and its companions in `folder` to a vocabulary of exactly n_tokens, the rows of
 * the embedding: ids without a token are filled up as unused, tokens without a row are dropped. */
int hf_read_vocab(const char *folder, const cJSON *config, uint32_t n_tokens,
                  struct vocab *ret_vocab, struct error *err);

/* From the normalizer and pre_tokenizer of a tokenizer.json whose model is BPE: which kind of BPE
 * it is. Fills model, pre and add_space_prefix. ERROR_UNSUPPORTED shows what was found. */
int hf_recognise_tokenizer(const cJSON *tokenizer, struct vocab *vocab, struct error *err);

#endif
