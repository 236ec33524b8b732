/* The bytes of the types whose blocks have 256 elements in groups with small integer scales, taken
 * apart and put together. Layouts: ggml's block structs of the same names. Internal to
 * engine/model. */
#ifndef OVERFILL_ENGINE_MODEL_SUPER_BLOCK_H
#define OVERFILL_ENGINE_MODEL_SUPER_BLOCK_H

#include "engine/model/tensor.h"

void q2_k_get(const uint8_t *block, struct tensor_block *ret_block);
void q3_k_get(const uint8_t *block, struct tensor_block *ret_block);
void q4_k_get(const uint8_t *block, struct tensor_block *ret_block);
void q5_k_get(const uint8_t *block, struct tensor_block *ret_block);
void q6_k_get(const uint8_t *block, struct tensor_block *ret_block);

void q2_k_put(const struct tensor_block *values, uint8_t *block);
void q3_k_put(const struct tensor_block *values, uint8_t *block);
void q4_k_put(const struct tensor_block *values, uint8_t *block);
void q5_k_put(const struct tensor_block *values, uint8_t *block);
void q6_k_put(const struct tensor_block *values, uint8_t *block);

#endif
