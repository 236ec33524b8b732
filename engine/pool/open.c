/* Opening the engine: models, KV, teams, threads; and closing it again. See engine.h. */
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <cblas.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_CONTEXT 8192u
#define DEFAULT_SEQUENCES 64u
#define DEFAULT_QUEUE 512u
#define DEFAULT_QUEUE_TOKENS 1000000u
#define DEFAULT_CHUNK_MS 25u
#define DEFAULT_KV_SHARE 4 /* of the memory */
#define DEFAULT_KV_MOST ((size_t)4 << 30)

/* Progress of packing two models as one bar. */
struct progress {
    const struct engine_options *options;
    const char *what;
    double begin, width;
};

static void report_progress(void *user, double share)
{
    const struct progress *p = user;
    if (p->options->progress)
        p->options->progress(p->options->progress_user, p->what, p->begin + share * p->width);
}

static enum model_weights model_weights_of(enum weight_type type)
{
    if (type == WEIGHT_F32)
        return MODEL_WEIGHTS_F32;
    return type == WEIGHT_Q8 ? MODEL_WEIGHTS_Q8 : MODEL_WEIGHTS_AUTO;
}

static void resolve_options(struct engine_options *o)
{
    unsigned n_cpus = system_cpu_count();
    /* Half each: together no more than there are CPUs, and a stage alone has them all anyway. */
    if (!o->decode_threads)
        o->decode_threads = n_cpus > 1 ? n_cpus / 2 : 1;
    if (!o->prefill_threads)
        o->prefill_threads = n_cpus > 1 ? n_cpus - n_cpus / 2 : 1;
    o->max_sequences = o->max_sequences ? o->max_sequences : DEFAULT_SEQUENCES;
    o->max_queue = o->max_queue ? o->max_queue : DEFAULT_QUEUE;
    o->max_queue_tokens = o->max_queue_tokens ? o->max_queue_tokens : DEFAULT_QUEUE_TOKENS;
    o->prefill_chunk_ms = o->prefill_chunk_ms ? o->prefill_chunk_ms : DEFAULT_CHUNK_MS;
    if (!o->kv_bytes) {
        o->kv_bytes = system_memory_bytes() / DEFAULT_KV_SHARE;
        o->kv_bytes = o->kv_bytes < DEFAULT_KV_MOST ? o->kv_bytes : DEFAULT_KV_MOST;
    }
}

static int check_options(const struct engine_options *o, struct error *err)
{
    if (!o->model_path || !*o->model_path)
        return error_set(err, ERROR_INVALID, "model: expected a GGUF file or a model folder");
    if (o->max_sequences > MOST_SEQUENCES)
        return error_set(err, ERROR_INVALID, "max-sequences: %u, expected at most %u",
                         o->max_sequences, MOST_SEQUENCES);
    if (o->decode != DECODE_DEFAULT && o->decode != DECODE_FULL && !o->pruned_path)
        return error_set(err, ERROR_INVALID, "decode: \"%s\" needs a pruned model (--pruned)",
                         decode_mode_name(o->decode));
    if (o->decode_every > ENGINE_MAX_EVERY)
        return error_set(err, ERROR_INVALID, "decode-every: %u, expected at most %d",
                         o->decode_every, ENGINE_MAX_EVERY);
    if (!(o->shadow_rate >= 0 && o->shadow_rate <= 1))
        return error_set(err, ERROR_INVALID, "shadow-rate: %g, expected 0 to 1", o->shadow_rate);
    if (o->prefill_threads > 1024 || o->decode_threads > 1024)
        return error_set(err, ERROR_INVALID, "threads: expected at most 1024");
    return 0;
}

/* "models/SmolLM2-135M.Q4_1.gguf" -> "SmolLM2-135M.Q4_1" */
static char *id_from_path(const char *path)
{
    size_t len = strlen(path);
    while (len && path[len - 1] == '/')
        len--;
    size_t begin = len;
    while (begin && path[begin - 1] != '/')
        begin--;
    if (len - begin > 5 && memcmp(path + len - 5, ".gguf", 5) == 0)
        len -= 5;
    return mem_strndup(path + begin, len - begin);
}

static int copy_names(struct engine *engine, struct error *err)
{
    struct engine_options *o = &engine->options;
    engine->model_path = mem_strdup(o->model_path);
    engine->state_dir = mem_strdup(o->state_dir ? o->state_dir : "");
    engine->model_id =
        o->model_id && *o->model_id ? mem_strdup(o->model_id) : id_from_path(o->model_path);
    if (o->pruned_path)
        engine->pruned_path = mem_strdup(o->pruned_path);
    if (!engine->model_path || !engine->model_id || !engine->state_dir ||
        (o->pruned_path && !engine->pruned_path))
        return error_memory(err, "model names", strlen(o->model_path));
    o->model_path = engine->model_path;
    o->pruned_path = engine->pruned_path;
    o->model_id = engine->model_id;
    o->state_dir = engine->state_dir;
    return 0;
}

/* The KV pool and the context that fits it. */
static int open_kv(struct engine *engine, const struct model_params *p, struct error *err)
{
    struct engine_options *o = &engine->options;
    const struct kv_layout layout = {
        .n_layers = p->n_layers,
        .n_kv_heads = p->n_kv_heads,
        .head_dim = p->head_dim,
        .element_bytes = o->kv_type == KV_F32    ? sizeof(float)
                         : o->kv_type == KV_Q8_0 ? sizeof(int8_t)
                                                 : sizeof(uint16_t),
        .format = o->kv_type == KV_BF16   ? KV_BRAIN
                  : o->kv_type == KV_Q8_0 ? KV_BLOCKS
                                          : KV_PLAIN,
    };
    int rc = kv_pool_open(&layout, o->kv_bytes, &engine->kv, err);
    if (rc)
        return rc;
    uint64_t room = (uint64_t)kv_pool_n_pages(engine->kv) * KERNEL_PAGE_TOKENS;
    if (o->context && o->context > room)
        return error_set(err, ERROR_INVALID,
                         "context: %u tokens do not fit kv-memory, which holds %" PRIu64
                         "; raise kv-memory or lower context",
                         o->context, room);
    if (!o->context) {
        o->context = p->context_train && p->context_train < DEFAULT_CONTEXT ? p->context_train
                                                                            : DEFAULT_CONTEXT;
        o->context = o->context < room ? o->context : (uint32_t)room;
    }
    engine->info.kv_bytes_per_token = kv_page_bytes(&layout) / KERNEL_PAGE_TOKENS;
    return 0;
}

static struct model_open_options model_options(const struct engine_options *o,
                                               struct progress *progress)
{
    return (struct model_open_options){
        .weights = model_weights_of(o->weights),
        .n_positions = o->context,
        .packed_cache = o->packed_cache,
        .progress = report_progress,
        .progress_user = progress,
    };
}

/* Is nothing cut and nothing rounded? */
static bool is_same_model(const struct model_file *a, const struct model_file *b)
{
    size_t n = model_file_n_tensors(a);
    if (n != model_file_n_tensors(b))
        return false;
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = model_file_tensor_at(a, i);
        const struct tensor *other = model_file_tensor(b, t->name);
        if (!other || other->type != t->type || memcmp(other->dims, t->dims, sizeof(t->dims)) != 0)
            return false;
    }
    return true;
}

static int open_twin(struct engine *engine, struct progress *progress, struct error *err)
{
    const struct engine_options *o = &engine->options;
    struct model_file *file;
    struct error warning = {0};
    int rc = model_file_open(o->pruned_path, &file, err);
    if (rc)
        return rc;
    rc = model_file_check_pair(engine->full->file, file, &warning, err);
    if (rc) {
        model_file_close(file);
        return rc;
    }
    if (warning.code)
        log_warn("%s: %s; the full model's is used", o->pruned_path, warning.message);
    progress->what = "loading the pruned model";
    progress->begin += progress->width;
    struct model_open_options how = model_options(o, progress);
    how.coarse = o->pruned_activations == ACTIVATIONS_AUTO
                     ? engine->full->coarse || !is_same_model(engine->full->file, file)
                     : o->pruned_activations == ACTIVATIONS_8;
    return model_open(file, &how, &engine->pruned, err);
}

static int open_models(struct engine *engine, struct error *err)
{
    const struct engine_options *o = &engine->options;
    struct progress progress = {o, "loading the full model", 0, o->pruned_path ? 0.5 : 1};
    struct model_file *file;
    int rc = model_file_open(o->model_path, &file, err);
    if (rc)
        return rc;
    rc = open_kv(engine, model_file_params(file), err);
    if (rc) {
        model_file_close(file);
        return rc;
    }
    struct model_open_options how = model_options(o, &progress);
    how.coarse = o->activations == ACTIVATIONS_8;
    rc = model_open(file, &how, &engine->full, err);
    if (rc == 0 && o->pruned_path)
        rc = open_twin(engine, &progress, err);
    return rc;
}

/* A model without a usable template still serves completions; a template the user named must be
 * known, and one that the file carries must be recognised. */
static int open_template(struct engine *engine, const struct vocab *vocab, struct error *err)
{
    const char *name = engine->options.chat_template;
    if (!name && !vocab->chat_template) {
        error_set(&engine->template_error, ERROR_UNSUPPORTED,
                  "messages: the model file has no chat template; start the server with "
                  "--chat-template NAME (%s)",
                  chat_template_names());
        return 0;
    }
    return chat_template_find(name, vocab->chat_template, &engine->chat_template, err);
}

static int open_text(struct engine *engine, struct error *err)
{
    const struct vocab *vocab = model_file_vocab(engine->full->file);
    int rc = tokenizer_open(vocab, &engine->tokenizer, err);
    if (rc == 0)
        rc = open_template(engine, vocab, err);
    if (rc)
        return rc;

    size_t n = 0;
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        n += tokenizer_is_end(engine->tokenizer, (int32_t)id);
    engine->end_tokens = mem_array(n + 1, sizeof(int32_t));
    if (!engine->end_tokens)
        return error_memory(err, "end tokens", (n + 1) * sizeof(int32_t));
    n = 0;
    for (uint32_t id = 0; id < vocab->n_tokens; id++)
        if (tokenizer_is_end(engine->tokenizer, (int32_t)id))
            engine->end_tokens[n++] = (int32_t)id;
    engine->end_tokens[n] = -1;
    return 0;
}

static void fill_info(struct engine *engine)
{
    const struct engine_options *o = &engine->options;
    struct engine_info *info = &engine->info;
    const struct model *full = engine->full;
    const struct model *twin = engine->pruned;
    char parts[128];

    info->model_id = engine->model_id;
    info->model_path = engine->model_path;
    info->pruned_path = engine->pruned_path;
    info->chat_template = engine->chat_template ? chat_template_name(engine->chat_template) : NULL;
    info->kernels = engine->kernels->name;
    info->is_coarse = full->quantized && full->coarse;
    info->prompts_in_bf16 = full->quantized && kernels_prompt(engine->kernels, full->coarse);
    info->prompts_attend_in_bf16 = engine->kernels->attend_prompt && full->quantized;
    info->context = o->context;
    info->context_train = full->params.context_train;
    info->vocab_size = full->params.vocab_size;
    info->n_params = model_file_n_params(full->file);
    info->n_params_pruned = twin ? model_file_n_params(twin->file) : 0;
    info->model_bytes = full->held_bytes;
    info->pruned_bytes = twin ? twin->held_bytes : 0;
    info->model_step_bytes = full->packed_bytes;
    info->pruned_step_bytes = twin ? twin->packed_bytes : 0;
    info->prefill_threads = o->prefill_threads;
    info->decode_threads = o->decode_threads;
    info->decode = o->decode != DECODE_DEFAULT ? o->decode : twin ? DECODE_PRUNED : DECODE_FULL;
    info->pruned_is_coarse = twin && twin->quantized && twin->coarse;
    snprintf(parts, sizeof(parts), "%016" PRIx64 " %016" PRIx64 " %d %d %d %d %s", full->file_hash,
             twin ? twin->file_hash : 0, (int)o->weights, (int)o->kv_type, info->is_coarse,
             info->pruned_is_coarse, info->kernels);
    snprintf(info->fingerprint, sizeof(info->fingerprint), "fp_%016" PRIx64,
             hash_bytes(HASH_START, parts, strlen(parts)));
}

/* Both teams are open: any thread of the crew may work for any stage. */
static int open_stage(struct engine *engine, struct stage *stage, uint32_t max_rows,
                      uint32_t logit_rows, struct error *err)
{
    const struct model *models[2] = {engine->full, engine->pruned};
    unsigned n_members = crew_size(engine->crew);
    int rc = forward_open(models, engine->pruned ? 2 : 1, engine->kernels, stage->team, max_rows,
                          logit_rows, &stage->forward, err);
    if (rc)
        return rc;
    stage->scratch = mem_calloc(n_members, sizeof(struct sampling_scratch *));
    if (!stage->scratch)
        return error_memory(err, "sampling scratch", n_members * sizeof(void *));
    for (unsigned i = 0; i < n_members && rc == 0; i++)
        rc = sampling_scratch_open(engine->info.vocab_size, &stage->scratch[i], err);
    return rc;
}

uint32_t decode_rows(const struct engine_options *options)
{
    return options->max_sequences > DECODE_ROWS ? options->max_sequences : DECODE_ROWS;
}

static int open_stages(struct engine *engine, struct error *err)
{
    const struct engine_options *o = &engine->options;
    bool may_spin = !system_has_cpu_quota() &&
                    (uint64_t)o->prefill_threads + o->decode_threads <= system_cpu_count();
    int rc = crew_open(may_spin, &engine->crew, err);
    if (rc == 0)
        rc = team_open(o->prefill_threads, "prefill", engine->crew, &engine->prefill.team, err);
    if (rc == 0)
        rc = team_open(o->decode_threads, "decode", engine->crew, &engine->decode.team, err);
    if (rc == 0)
        rc = open_stage(engine, &engine->prefill, PREFILL_MAX_ROWS, PREFILL_LOGIT_ROWS, err);
    if (rc == 0)
        rc = open_stage(engine, &engine->decode, decode_rows(o), decode_rows(o), err);
    return rc;
}

static int start_thread(struct engine *engine, struct stage *stage, void *(*main)(void *),
                        const char *name, struct error *err)
{
    int rc = pthread_create(&stage->thread, NULL, main, engine);
    if (rc)
        return error_set(err, ERROR_IO, "%s thread: %s", name, strerror(rc));
    stage->started = true;
    return 0;
}

static int open_all(struct engine *engine, struct error *err)
{
    int rc = kernels_select(getenv("OVERFILL_KERNELS"), &engine->kernels, err);
    if (rc == 0)
        rc = copy_names(engine, err);
    if (rc == 0)
        rc = open_models(engine, err);
    if (rc == 0)
        rc = open_text(engine, err);
    if (rc)
        return rc;
    fill_info(engine);
    openblas_set_num_threads(1); /* the teams are the threads; BLAS runs on their members */
    rc = open_stages(engine, err);
    if (rc == 0)
        state_load(engine);
    if (rc == 0)
        rc = start_thread(engine, &engine->decode, decode_main, "decode", err);
    if (rc == 0)
        rc = start_thread(engine, &engine->prefill, prefill_main, "prefill", err);
    if (rc == 0)
        rc = start_thread(engine, &engine->intake, intake_main, "intake", err);
    return rc;
}

int engine_open(const struct engine_options *options, struct engine **ret_engine, struct error *err)
{
    struct engine *engine = mem_calloc(1, sizeof(*engine));
    if (!engine)
        return error_memory(err, "engine", sizeof(*engine));
    struct stage *stages[] = {&engine->intake, &engine->prefill, &engine->decode};
    for (size_t i = 0; i < 3; i++) {
        pthread_mutex_init(&stages[i]->lock, NULL);
        pthread_cond_init(&stages[i]->wake, NULL);
        stages[i]->worst = RANK_NOBODY;
    }
    pthread_mutex_init(&engine->registry_lock, NULL);
    pthread_mutex_init(&engine->ready_lock, NULL);
    pthread_mutex_init(&engine->stats_lock, NULL);
    pthread_cond_init(&engine->ready_wake, NULL);
    engine->options = *options;
    resolve_options(&engine->options);

    int rc = check_options(&engine->options, err);
    if (rc == 0)
        rc = open_all(engine, err);
    if (rc) {
        engine_close(engine);
        return rc;
    }
    *ret_engine = engine;
    return 0;
}

static void join_stage(struct stage *stage)
{
    if (!stage->started)
        return;
    stage_nudge(stage);
    pthread_join(stage->thread, NULL);
}

static void close_stage(struct engine *engine, struct stage *stage)
{
    for (unsigned i = 0; stage->scratch && i < crew_size(engine->crew); i++)
        sampling_scratch_close(stage->scratch[i]);
    mem_free(stage->scratch);
    forward_close(stage->forward);
    pthread_mutex_destroy(&stage->lock);
    pthread_cond_destroy(&stage->wake);
}

void engine_close(struct engine *engine)
{
    if (!engine)
        return;
    atomic_store(&engine->stopping, true);
    join_stage(&engine->intake); /* in the direction of the work, so that nothing is left behind */
    join_stage(&engine->prefill);
    join_stage(&engine->decode);
    for (size_t i = 0; i < REGISTRY_BUCKETS; i++) {
        while (engine->buckets[i]) {
            struct request *request = engine->buckets[i];
            engine->buckets[i] = request->bucket_next;
            request_free(request);
        }
    }
    background_free(engine->prefill.background);
    if (engine->intake.started) /* the last step of opening */
        state_save(engine);
    close_stage(engine, &engine->intake);
    close_stage(engine, &engine->prefill);
    close_stage(engine, &engine->decode);
    team_close(engine->prefill.team);
    team_close(engine->decode.team);
    crew_close(engine->crew);
    kv_pool_close(engine->kv);
    tokenizer_close(engine->tokenizer);
    model_close(engine->full);
    model_close(engine->pruned);
    mem_free(engine->end_tokens);
    mem_free(engine->model_id);
    mem_free(engine->model_path);
    mem_free(engine->pruned_path);
    mem_free(engine->state_dir);
    pthread_mutex_destroy(&engine->registry_lock);
    pthread_mutex_destroy(&engine->ready_lock);
    pthread_mutex_destroy(&engine->stats_lock);
    pthread_cond_destroy(&engine->ready_wake);
    mem_free(engine);
}
