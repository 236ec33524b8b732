/* What a twin's file says of itself: the source's metadata with the twin's sizes, and how it was
 * made.
 */
#include "engine/model/gguf.h"
#include "engine/model/gguf_write.h"
#include "engine/prune/prune_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define VERSION_KEY "overfill.prune.version"
#define SOURCE_KEY "overfill.prune.source_hash"
#define CALIBRATION_KEY "overfill.prune.calibration_hash"

static bool has_hash(const struct gguf_file *gguf, const char *key, uint64_t hash)
{
    char expected[20];
    struct vocab_string found = {0};
    struct error err;
    int len = snprintf(expected, sizeof(expected), "%016" PRIx64, hash);
    return gguf_get_string(gguf, key, GGUF_OPTIONAL, &found, &err) == 0 &&
           found.len == (uint32_t)len && memcmp(found.data, expected, found.len) == 0;
}

static bool has_version(const struct gguf_file *gguf)
{
    uint32_t version = 0;
    struct error err;
    return gguf_get_u32(gguf, VERSION_KEY, GGUF_OPTIONAL, &version, &err) == 0 &&
           version == PRUNER_VERSION;
}

bool prune_is_twin_of(const char *path, uint64_t source_hash, uint64_t calibration_hash)
{
    struct model_file *file;
    struct error err;
    if (model_file_open(path, &file, &err))
        return false;
    const struct gguf_file *gguf = model_file_gguf(file);
    bool is_twin = gguf && has_version(gguf) && has_hash(gguf, SOURCE_KEY, source_hash) &&
                   has_hash(gguf, CALIBRATION_KEY, calibration_hash);
    model_file_close(file);
    return is_twin;
}

void twin_metadata(const struct model_file *file, const char *method, uint32_t hidden, uint32_t mlp,
                   uint64_t calibration_hash, struct gguf_writer *writer)
{
    const struct model_params *p = model_file_params(file);
    char key[96];
    char text[160];

    model_file_describe(file, writer);
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        {"embedding_length", hidden},
        {"feed_forward_length", mlp},
        {"attention.key_length", p->head_dim},
        {"attention.value_length", p->head_dim},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", model_arch_name(p->arch), sizes[i].key);
        gguf_writer_set_u32(writer, key, sizes[i].value);
    }
    if (hidden == p->hidden && mlp == p->mlp && !calibration_hash)
        return; /* the model itself, in a file of another kind or type */
    snprintf(text, sizeof(text), "%s pruned to %u/%u", p->name, hidden, mlp);
    gguf_writer_set_string(writer, "general.name", text);
    gguf_writer_set_string(writer, "overfill.prune.method", method);
    gguf_writer_set_u32(writer, VERSION_KEY, PRUNER_VERSION);
    snprintf(text, sizeof(text), "%016" PRIx64, model_file_hash(file));
    gguf_writer_set_string(writer, SOURCE_KEY, text);
    snprintf(text, sizeof(text), "%016" PRIx64, calibration_hash);
    gguf_writer_set_string(writer, CALIBRATION_KEY, text);
    gguf_writer_set_u32(writer, "overfill.prune.hidden", hidden);
    gguf_writer_set_u32(writer, "overfill.prune.mlp", mlp);
}
