/* Handlers of the generation routes: parameters -> job. From here on the engine works and job.c
 * collects. */
#include "server/job.h"
#include "server/request.h"

#include <sys/random.h>

/* Without a seed of the client's every request draws its own. */
static void choose_seed(struct params *p)
{
    if (p->seed_given)
        return;
    if (getrandom(&p->sampling.seed, sizeof(p->sampling.seed), 0) !=
        (ssize_t)sizeof(p->sampling.seed))
        p->sampling.seed = 0;
}

static int open_job(struct exchange *x, const struct request_plan *plan, struct params *params,
                    struct http_error *e)
{
    choose_seed(params);
    return job_open(x, plan->shape, params, e);
}

static const struct request_plan CHAT = {ON_CHAT, NULL, open_job, &CHAT_SHAPE};
static const struct request_plan COMPLETIONS = {ON_COMPLETIONS, NULL, open_job, &COMPLETIONS_SHAPE};
static const struct request_plan RESPONSES = {ON_RESPONSES, NULL, open_job, &RESPONSES_SHAPE};
static const struct request_plan MESSAGES = {ON_MESSAGES, NULL, open_job, &MESSAGES_SHAPE};

void handle_chat_completions(struct exchange *x)
{
    request_run(x, &CHAT);
}

void handle_completions(struct exchange *x)
{
    request_run(x, &COMPLETIONS);
}

void handle_responses(struct exchange *x)
{
    request_run(x, &RESPONSES);
}

void handle_messages(struct exchange *x)
{
    request_run(x, &MESSAGES);
}
