/* The input as a file with a path, for readers that open files. */
#ifndef OVERFILL_TESTS_FUZZ_FILE_H
#define OVERFILL_TESTS_FUZZ_FILE_H

#include <stddef.h>
#include <stdint.h>

/* Replaces the content of the one file; the path is the same every time. */
const char *fuzz_file(const uint8_t *data, size_t n);

#endif
