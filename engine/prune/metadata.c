/* What a twin's file says of itself: the source's metadata with the twin's sizes, and how it was
 * made.
 */
#include "engine/model/gguf_write.h"
#include "engine/prune/prune_internal.h"

#include <inttypes.h>
#include <stdio.h>

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
    snprintf(text, sizeof(text), "%016" PRIx64, model_file_hash(file));
    gguf_writer_set_string(writer, "overfill.prune.source_hash", text);
    snprintf(text, sizeof(text), "%016" PRIx64, calibration_hash);
    gguf_writer_set_string(writer, "overfill.prune.calibration_hash", text);
    gguf_writer_set_u32(writer, "overfill.prune.hidden", hidden);
    gguf_writer_set_u32(writer, "overfill.prune.mlp", mlp);
}
