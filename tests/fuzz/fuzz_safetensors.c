/* A .safetensors file of any content: opened, and every tensor's bytes read. */
#include "engine/model/safetensors.h"
#include "tests/fuzz/file.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile unsigned long sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct safetensors *file;
    struct error err;

    if (safetensors_open(fuzz_file(data, n), &file, &err) < 0)
        return 0;
    for (size_t i = 0; i < safetensors_n(file); i++) {
        const struct safetensor *t = safetensors_at(file, i);
        sink += strlen(t->name) + strlen(t->dtype);
        for (size_t k = 0; t->type >= 0 && k < t->bytes; k++)
            sink += t->data[k];
    }
    safetensors_close(file);
    return 0;
}
