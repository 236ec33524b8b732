/* The loops that peaks.c times. Internal to engine/bench. */
#ifndef OVERFILL_ENGINE_BENCH_LOOPS_H
#define OVERFILL_ENGINE_BENCH_LOOPS_H

#include <stdbool.h>
#include <stddef.h>

enum loop_kind { LOOP_INT8, LOOP_INT4, LOOP_INT16, LOOP_FP32, LOOP_BF16, N_LOOP_KINDS };

struct loop {
    enum loop_kind kind;
    const char *with; /* the instructions */
    bool (*available)(void);
    void (*run)(size_t n_rounds);
    double ops; /* of a round */
};

extern const struct loop LOOPS[];
extern const size_t N_LOOPS;

/* Reads all of p; bytes is a multiple of 256, p of 64. */
void loop_read(const void *p, size_t bytes);

#endif
