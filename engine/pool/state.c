/* The prefix cache from one life of the engine to the next: a file in state_dir. A file that cannot
 * be used or written is a line in the log and nothing else: the prompts are read again. */
#include "engine/base/log.h"
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#define DEFAULT_STATE_BYTES ((size_t)1 << 30)

static bool has_state(const struct engine *engine)
{
    const char *dir = engine->options.state_dir;
    return dir && *dir && !engine->options.no_prefix_cache;
}

static bool put_path(const struct engine *engine, struct buf *path)
{
    buf_printf(path, "%s/prefix-cache", engine->options.state_dir);
    if (path->failed)
        log_warn("state-dir: out of memory for its path");
    return !path->failed;
}

static void tell(const struct engine *engine, const char *what, uint32_t n_pages, uint64_t start_ns)
{
    log_info("state-dir: %s %u tokens of the prefix cache, %.0f MiB, in %.1f s", what,
             n_pages * KERNEL_PAGE_TOKENS,
             (double)n_pages * (double)kv_page_bytes(kv_pool_layout(engine->kv)) / 1048576,
             (double)(system_now_ns() - start_ns) / 1e9);
}

void state_load(struct engine *engine)
{
    _cleanup_buf_ struct buf path = {0};
    struct error err;
    uint32_t n_pages;
    if (!has_state(engine) || !put_path(engine, &path))
        return;
    uint64_t start_ns = system_now_ns();
    if (kv_state_load(engine->kv, path.data, engine->info.fingerprint, &n_pages, &err))
        log_warn("state-dir: the prefix cache begins empty: %s", err.message);
    else if (n_pages)
        tell(engine, "found", n_pages, start_ns);
}

void state_save(struct engine *engine)
{
    _cleanup_buf_ struct buf path = {0};
    struct error err;
    uint32_t n_pages;
    size_t most = engine->options.state_bytes ? engine->options.state_bytes : DEFAULT_STATE_BYTES;
    if (!has_state(engine) || !put_path(engine, &path))
        return;
    uint64_t start_ns = system_now_ns();
    if (kv_state_save(engine->kv, path.data, engine->info.fingerprint, most, &n_pages, &err))
        log_warn("state-dir: the prefix cache is not kept: %s", err.message);
    else if (n_pages)
        tell(engine, "kept", n_pages, start_ns);
}
