/* From settings to what engine_open takes. */
#include "cli/cli.h"
#include "engine/engine.h"

#include <string.h>

static const char *none_if_empty(const char *text)
{
    return *text ? text : NULL;
}

static enum activation_bits activations_of(const char *name)
{
    return strcmp(name, "8") == 0    ? ACTIVATIONS_8
           : strcmp(name, "12") == 0 ? ACTIVATIONS_12
                                     : ACTIVATIONS_AUTO;
}

void cli_engine_options(const struct settings *settings, struct engine_options *ret_options)
{
    int mode = decode_mode_from_name(settings->decode); /* "auto" is none of its names */

    *ret_options = (struct engine_options){
        .model_path = settings->model,
        .pruned_path = none_if_empty(settings->pruned),
        .model_id = none_if_empty(settings->model_id),
        .chat_template = none_if_empty(settings->chat_template),
        .decode_every = settings->every,
        .decode = mode < 0 ? DECODE_DEFAULT : (enum decode_mode)mode,
        .weights = strcmp(settings->weights, "f32") == 0  ? WEIGHT_F32
                   : strcmp(settings->weights, "q8") == 0 ? WEIGHT_Q8
                                                          : WEIGHT_AUTO,
        .activations = activations_of(settings->activations),
        .pruned_activations = activations_of(settings->pruned_activations),
        .kv_type = strcmp(settings->kv_type, "f32") == 0    ? KV_F32
                   : strcmp(settings->kv_type, "bf16") == 0 ? KV_BF16
                   : strcmp(settings->kv_type, "q8_0") == 0 ? KV_Q8_0
                                                            : KV_F16,
        .context = settings->context,
        .kv_bytes = settings->kv_memory,
        .prefill_threads = settings->prefill_threads,
        .decode_threads = settings->decode_threads,
        .max_sequences = settings->max_sequences,
        .max_queue = settings->max_queue,
        .max_queue_tokens = settings->max_queue_tokens,
        .prefill_chunk_ms = settings->prefill_chunk_ms,
        .no_prefix_cache = strcmp(settings->prefix_cache, "off") == 0,
        .packed_cache = none_if_empty(settings->packed_cache),
        .state_dir = none_if_empty(settings->state_dir),
        .state_bytes = settings->state_size,
        .no_background = strcmp(settings->background, "off") == 0,
        .shadow_rate = settings->shadow_rate,
    };
}
