/* What this machine can do at most, measured in this process with small loops: integer and float
 * arithmetic in registers, reading from the last cache and from memory. The program's speed is told
 * as a share of these. Not here: the program's own speed (cli/bench.c). */
#ifndef OVERFILL_ENGINE_BENCH_PEAKS_H
#define OVERFILL_ENGINE_BENCH_PEAKS_H

#include "engine/base/error.h"

#include <stddef.h>

/* The best loop of its kind. */
struct peak {
    double gops;      /* multiplications and additions, one each; 0: no instruction for it */
    const char *with; /* the instructions */
};

struct peaks {
    unsigned n_threads;
    struct peak int8;
    struct peak int4;  /* bytes times nibbles: their products may be added up in 16 bits */
    struct peak int16; /* pairs of 16 bits */
    struct peak fp32, bf16;
    double ram_gbs;
    double l3_gbs;   /* 0: the machine tells of no L3 */
    size_t l3_bytes; /* that these threads share */
};

/* Takes n_threads threads for about two seconds. The best of several runs: a limit. */
int peaks_measure(unsigned n_threads, struct peaks *ret_peaks, struct error *err);

#endif
