/* Is there disk and memory for a run? Asked before hours are spent on it. See prune_internal.h. */
#include "engine/base/system.h"
#include "engine/prune/prune_internal.h"

#include <stdio.h>
#include <sys/stat.h>

static size_t file_bytes(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (size_t)st.st_size : 0;
}

/* Of reconstruct: a head of its own where the width is not the full model's, and the matrices as
 * they are solved, of which a former run may have left some. */
static size_t store_bytes(const struct prune_options *options, const struct model_params *p,
                          uint32_t hidden, size_t twin_bytes)
{
    char store[4096];
    size_t head = 0;
    bool unties = p->tied && hidden < p->hidden;
    if (unties && tensor_type_bytes((enum tensor_type)options->head_type, hidden, &head))
        head *= p->vocab_size;
    snprintf(store, sizeof(store), "%s.layers", options->out_path);
    size_t all = twin_bytes + head;
    size_t there = file_bytes(store);
    return head + (all > there ? all - there : 0);
}

int room_check_disk(const struct prune_options *options, const struct model_file *file,
                    uint32_t hidden, uint32_t mlp, struct error *err)
{
    struct prune_options typed = *options;
    size_t free_bytes;
    if (options->method == PRUNE_RECONSTRUCT && options->type == PRUNE_TYPE_KEEP)
        typed.type = TENSOR_Q8_0;
    if (options->head_type == PRUNE_TYPE_KEEP)
        typed.head_type = typed.type;
    size_t needed = slice_bytes(&typed, file, hidden, mlp);
    if (options->method == PRUNE_RECONSTRUCT)
        needed += store_bytes(&typed, model_file_params(file), hidden, needed);
    if (!system_disk_free(options->out_path, &free_bytes) || needed <= free_bytes)
        return 0;
    return error_set(err, ERROR_IO,
                     "%s: the twin needs about %zu MB of disk, %zu MB are free (%zu bytes, %zu)",
                     options->out_path, needed >> 20, free_bytes >> 20, needed, free_bytes);
}

int room_check_bytes(size_t fixed, size_t of_samples, size_t per_token, size_t n_tokens,
                     struct error *err)
{
    size_t needed = fixed + of_samples + per_token * n_tokens;
    size_t have = system_memory_bytes();
    size_t room = have - have / 8;
    if (needed < room)
        return 0;
    return error_set(err, ERROR_MEMORY,
                     "pruning with %zu calibration tokens needs about %zu MB of memory, this "
                     "process may have %zu MB (%zu bytes, %zu); --tokens %zu would fit",
                     n_tokens, needed >> 20, have >> 20, needed, have,
                     room > fixed ? (room - fixed) / per_token : 0);
}

int room_check_memory(const struct model_file *file, const struct sample_set *samples,
                      struct error *err)
{
    const struct model_params *p = model_file_params(file);
    /* a layer in eight bits, and the embedding's and the scratch rows' small change */
    size_t fixed = (size_t)p->hidden * p->mlp * 4 + ((size_t)256 << 20);
    size_t token =
        p->hidden * sizeof(float) + 2 * (size_t)p->n_kv_heads * p->head_dim * sizeof(uint16_t);
    size_t scores = samples->n_samples * ((size_t)p->hidden + p->mlp) * sizeof(double);
    return room_check_bytes(fixed, scores, token, samples->tokens.n, err);
}
