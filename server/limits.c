/* How much a key may ask for in a minute: a bucket of requests and one of tokens, each as large as
 * the limit and filling steadily. A request is let in while both have something left; its tokens,
 * which nobody knows before, are taken off afterwards, so a long answer puts the key in debt. */
#include "engine/base/system.h"
#include "server/internal.h"
#include "server/keys.h"

#include <math.h>
#include <stdio.h>

#define MINUTE_S 60.0
#define WAIT_MAX_S 86400.0 /* what is told; a debt may be larger than its milliseconds' type */

static void refill(struct allowance *a, unsigned limit, uint64_t now_ns)
{
    if (a->at_ns == 0)
        a->left = limit;
    else
        a->left += (double)(now_ns - a->at_ns) / 1e9 * limit / MINUTE_S;
    if (a->left > limit)
        a->left = limit;
    a->at_ns = now_ns;
}

/* Seconds until there is `wanted` again. */
static double seconds_until(const struct allowance *a, unsigned limit, double wanted)
{
    return a->left >= wanted ? 0 : fmin((wanted - a->left) * MINUTE_S / limit, WAIT_MAX_S);
}

static int refuse(struct http_error *e, const char *type, unsigned limit, double wait_s)
{
    http_error_set(e, 429, "rate_limit_exceeded",
                   "Rate limit reached for this key on %s per minute: limit %u. Please try again "
                   "in %.3f s.",
                   type, limit, wait_s);
    e->type = type;
    e->reason = REJECT_RATE;
    e->retry_after_ms = (unsigned)ceil(wait_s * 1e3);
    e->retry_after_s = (unsigned)ceil(wait_s);
    return -1;
}

int limits_take(struct exchange *x, struct http_error *e)
{
    const struct server_options *o = &x->server->options;
    uint64_t now_ns = system_now_ns();
    struct api_key *key = x->key;

    if (!key || !x->route->is_limited)
        return 0;
    if (o->requests_per_minute) {
        refill(&key->requests, o->requests_per_minute, now_ns);
        if (key->requests.left < 1)
            return refuse(e, "requests", o->requests_per_minute,
                          seconds_until(&key->requests, o->requests_per_minute, 1));
    }
    if (o->tokens_per_minute) {
        refill(&key->tokens, o->tokens_per_minute, now_ns);
        if (key->tokens.left < 1)
            return refuse(e, "tokens", o->tokens_per_minute,
                          seconds_until(&key->tokens, o->tokens_per_minute, 1));
    }
    key->requests.left -= o->requests_per_minute ? 1 : 0;
    return 0;
}

void limits_charge(struct exchange *x, uint32_t n_tokens)
{
    unsigned limit = x->server->options.tokens_per_minute;

    if (!x->key || !limit)
        return;
    refill(&x->key->tokens, limit, system_now_ns());
    x->key->tokens.left -= n_tokens;
}

/* "1m30s", "2.5s", "120ms", "0s": OpenAI writes Go's durations. Rounded up to milliseconds. */
static void write_duration(char *text, size_t bytes, double seconds)
{
    unsigned ms = (unsigned)ceil(seconds * 1e3);

    if (ms >= 60000)
        snprintf(text, bytes, "%um%gs", ms / 60000, ms % 60000 / 1e3);
    else if (ms == 0 || ms >= 1000)
        snprintf(text, bytes, "%gs", ms / 1e3);
    else
        snprintf(text, bytes, "%ums", ms);
}

static bool add_three(struct MHD_Response *response, const char *what, unsigned limit,
                      const struct allowance *a)
{
    char name[64], value[48];
    bool ok;

    snprintf(name, sizeof(name), "x-ratelimit-limit-%s", what);
    snprintf(value, sizeof(value), "%u", limit);
    ok = MHD_add_response_header(response, name, value) == MHD_YES;
    snprintf(name, sizeof(name), "x-ratelimit-remaining-%s", what);
    snprintf(value, sizeof(value), "%.0f", a->left > 0 ? floor(a->left) : 0.0);
    ok &= MHD_add_response_header(response, name, value) == MHD_YES;
    snprintf(name, sizeof(name), "x-ratelimit-reset-%s", what);
    write_duration(value, sizeof(value), seconds_until(a, limit, limit));
    return MHD_add_response_header(response, name, value) == MHD_YES && ok;
}

bool limits_add_headers(const struct exchange *x, struct MHD_Response *response)
{
    const struct server_options *o = &x->server->options;
    bool ok = true;

    if (!x->key || !x->route || !x->route->is_limited)
        return true;
    if (o->requests_per_minute)
        ok &= add_three(response, "requests", o->requests_per_minute, &x->key->requests);
    if (o->tokens_per_minute)
        ok &= add_three(response, "tokens", o->tokens_per_minute, &x->key->tokens);
    return ok;
}
