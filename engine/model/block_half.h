/* Halves within the bytes of a block, which guarantee no alignment. Internal to engine/model. */
#ifndef OVERFILL_ENGINE_MODEL_BLOCK_HALF_H
#define OVERFILL_ENGINE_MODEL_BLOCK_HALF_H

#include "engine/model/tensor.h"

#include <string.h>

static inline float load_half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof(h));
    return half_to_float(h);
}

static inline void store_half(uint8_t *p, float f)
{
    uint16_t h = float_to_half(f);
    memcpy(p, &h, sizeof(h));
}

#endif
