/* Lets a CPU without AMX run amx.c: eight tiles in memory, and loops for the instructions, which
 * check shapes as the CPU does. Not for several threads. Included before everything else by the
 * compiler's -include. */
#ifndef OVERFILL_TESTS_EMULATE_AMX_H
#define OVERFILL_TESTS_EMULATE_AMX_H

#include "emulate_avx512.h"

#include <assert.h>
#include <stdint.h>

static struct {
    size_t n_rows, row_bytes;
    uint8_t bytes[16][64];
} emulated_tiles[8];

/* As ldtilecfg's memory operand is laid out; sets all tiles to zero. */
static inline void emulated_loadconfig(const void *memory)
{
    const uint8_t *shapes = memory;
    assert(shapes[0] == 1);
    for (size_t i = 0; i < 8; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, shapes + 16 + 2 * i, sizeof(row_bytes));
        memset(&emulated_tiles[i], 0, sizeof(emulated_tiles[i]));
        emulated_tiles[i].row_bytes = row_bytes;
        emulated_tiles[i].n_rows = shapes[48 + i];
        assert(row_bytes <= 64 && shapes[48 + i] <= 16);
    }
}

static inline void emulated_loadd(int tile, const void *base, size_t stride)
{
    for (size_t r = 0; r < emulated_tiles[tile].n_rows; r++)
        memcpy(emulated_tiles[tile].bytes[r], (const uint8_t *)base + r * stride,
               emulated_tiles[tile].row_bytes);
}

static inline void emulated_stored(int tile, void *base, size_t stride)
{
    for (size_t r = 0; r < emulated_tiles[tile].n_rows; r++)
        memcpy((uint8_t *)base + r * stride, emulated_tiles[tile].bytes[r],
               emulated_tiles[tile].row_bytes);
}

/* sum[m][n] += a[m][k] * b[k / 4][n][k % 4]; a signed. */
static inline void emulated_dp(int sum, int a, int b, int b_is_signed)
{
    size_t n_rows = emulated_tiles[sum].n_rows;
    size_t n_outputs = emulated_tiles[sum].row_bytes / 4;
    assert(emulated_tiles[a].n_rows == n_rows);
    assert(emulated_tiles[b].n_rows * 4 == emulated_tiles[a].row_bytes);
    assert(emulated_tiles[b].row_bytes == n_outputs * 4);
    for (size_t m = 0; m < n_rows; m++) {
        for (size_t n = 0; n < n_outputs; n++) {
            int32_t total;
            memcpy(&total, &emulated_tiles[sum].bytes[m][4 * n], sizeof(total));
            for (size_t k = 0; k < emulated_tiles[a].row_bytes; k++) {
                uint8_t byte = emulated_tiles[b].bytes[k / 4][4 * n + k % 4];
                total +=
                    (int8_t)emulated_tiles[a].bytes[m][k] * (b_is_signed ? (int8_t)byte : byte);
            }
            memcpy(&emulated_tiles[sum].bytes[m][4 * n], &total, sizeof(total));
        }
    }
}

/* sum[m][n] += a[m][2k] * b[k][n][0] + a[m][2k + 1] * b[k][n][1], of bf16. */
static inline float emulated_element(const uint8_t *bytes)
{
    return emulated_bf16((uint16_t)(bytes[0] | bytes[1] << 8));
}

static inline void emulated_dpbf16_tile(int sum, int a, int b)
{
    size_t n_rows = emulated_tiles[sum].n_rows;
    size_t n_outputs = emulated_tiles[sum].row_bytes / 4;
    assert(emulated_tiles[a].n_rows == n_rows);
    assert(emulated_tiles[b].n_rows * 4 == emulated_tiles[a].row_bytes);
    assert(emulated_tiles[b].row_bytes == n_outputs * 4);
    for (size_t m = 0; m < n_rows; m++) {
        for (size_t n = 0; n < n_outputs; n++) {
            float total;
            memcpy(&total, &emulated_tiles[sum].bytes[m][4 * n], sizeof(total));
            for (size_t k = 0; k < emulated_tiles[b].n_rows; k++)
                for (size_t i = 0; i < 2; i++)
                    total += emulated_element(&emulated_tiles[a].bytes[m][4 * k + 2 * i]) *
                             emulated_element(&emulated_tiles[b].bytes[k][4 * n + 2 * i]);
            memcpy(&emulated_tiles[sum].bytes[m][4 * n], &total, sizeof(total));
        }
    }
}

/* what the compiler's own header, which is included by now, defines of them */
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) emulated_loadconfig(shapes)
#define _tile_release() ((void)0)
#define _tile_zero(tile) memset(emulated_tiles[tile].bytes, 0, sizeof(emulated_tiles[tile].bytes))
#define _tile_loadd(tile, base, stride) emulated_loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_stored(tile, base, stride)
#define _tile_dpbssd(sum, a, b) emulated_dp(sum, a, b, 1)
#define _tile_dpbsud(sum, a, b) emulated_dp(sum, a, b, 0)

#define _tile_dpbf16ps(sum, a, b) emulated_dpbf16_tile(sum, a, b)

#define KERNELS_AMX KERNELS_AMX_EMULATED
#define KERNELS_AMX_BF16 KERNELS_AMX_BF16_EMULATED
#define PRODUCTS_AMX_BF16 PRODUCTS_AMX_BF16_EMULATED

#endif
