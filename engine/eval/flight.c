/* Many requests through one engine, a bounded number of them at a time. See eval_internal.h. */
#include "engine/eval/eval_internal.h"

static void show_progress(const struct flight *f, size_t n_done)
{
    const struct eval_options *o = f->eval->options;
    if (o->progress)
        o->progress(o->progress_user, f->eval->what,
                    f->share_begin +
                        f->share_width * (double)n_done / (double)(f->n_items ? f->n_items : 1));
}

static int submit(struct flight *f, struct flight_slot *slot, size_t item, struct error *err)
{
    struct engine_request request = {
        .n = 1, .sampling = SAMPLING_DEFAULTS, .n_logprobs = -1, .user = slot};
    request.sampling.temperature = 0;
    int rc = f->make(f->user, item, &request, err);
    if (rc)
        return rc;
    slot->flight = f;
    slot->item = item;
    rc = engine_submit(f->engine, &request, &slot->id, err);
    slot->busy = rc == 0;
    return rc;
}

static void cancel_all(struct flight *f, const struct flight_slot *slots)
{
    for (size_t i = 0; i < f->most; i++)
        if (slots[i].busy)
            engine_cancel(f->engine, slots[i].id);
}

/* Hands one output on. *status keeps the first failure, which ends the flight. */
static bool take_output(struct flight *f, const struct engine_output *output, int *status,
                        struct error *err)
{
    struct flight_slot *slot = output->user;
    if (*status == 0 && output->error) {
        *err = *output->error;
        *status = -(int)err->code;
    }
    if (*status == 0)
        *status = f->take(f->user, slot->item, output, err);
    slot->busy = !output->done;
    return output->done;
}

static int fill_slots(struct flight *f, struct flight_slot *slots, size_t *next, size_t *n_busy,
                      struct error *err)
{
    int rc = 0;
    for (size_t i = 0; i < f->most && *next < f->n_items && rc == 0; i++) {
        if (slots[i].busy)
            continue;
        rc = submit(f, &slots[i], *next, err);
        if (rc == 0) {
            ++*next;
            ++*n_busy;
        }
    }
    return rc;
}

int flight_run(struct flight *f, struct error *err)
{
    struct flight_slot slots[FLIGHT_MOST] = {0};
    size_t next = 0, n_busy = 0, n_done = 0;
    bool is_cancelled = false;
    int status = 0;

    f->most = f->most && f->most < FLIGHT_MOST ? f->most : FLIGHT_MOST;
    for (;;) {
        if (status == 0)
            status = fill_slots(f, slots, &next, &n_busy, err);
        if (status && !is_cancelled) {
            cancel_all(f, slots);
            is_cancelled = true;
        }
        if (!n_busy)
            return status;
        const struct engine_output *output = engine_wait(f->engine, -1);
        if (output && take_output(f, output, &status, err)) {
            n_busy--;
            show_progress(f, ++n_done);
        }
    }
}
