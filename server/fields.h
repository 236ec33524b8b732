/* The request fields of /v1/chat/completions and /v1/completions: ONE table (fields.c) says each
 * field's type, range and routes; validation and the error texts come from it. The result is a
 * plain struct that generate.c hands to the engine. */
#ifndef OVERFILL_SERVER_FIELDS_H
#define OVERFILL_SERVER_FIELDS_H

#include "engine/engine.h"
#include "server/errors.h"

#include <cjson/cJSON.h>

#define PARAMS_MAX_STOPS 4
#define PARAMS_MAX_PROMPTS 1024
#define PARAMS_MAX_MESSAGES 4096
#define PARAMS_MAX_CHOICES 2048 /* prompts * n */
#define PARAMS_NO_LIMIT UINT32_MAX

enum field_route { ON_CHAT = 1, ON_COMPLETIONS = 2, ON_BOTH = 3 };

struct prompt {
    const char *text; /* NULL: the tokens are the prompt */
    size_t text_len;
    const int32_t *tokens;
    size_t n_tokens;
};

/* Everything here points into the JSON tree or into `owned`; params_free frees both. */
struct params {
    enum field_route route;
    const char *model;
    struct chat_message *messages; /* chat */
    size_t n_messages;
    struct prompt *prompts; /* completions */
    size_t n_prompts;

    bool stream;
    bool include_usage; /* stream_options */
    bool continuous_usage;
    uint32_t n;
    uint32_t best_of;    /* 0: not given */
    uint32_t max_tokens; /* PARAMS_NO_LIMIT: not given */
    uint32_t max_completion_tokens;
    uint32_t min_tokens;
    bool ignore_eos;
    bool echo;
    bool parse_special;
    bool logprobs;        /* chat */
    int32_t top_logprobs; /* chat */
    int32_t n_logprobs;   /* for the engine: -1 none, 0 the token's own, k and the k best */
    struct stop_string stops[PARAMS_MAX_STOPS];
    size_t n_stops;
    struct sampling_params sampling;
    bool seed_given;
    enum decode_mode decode;
    double ping_s; /* llama-server's sse_ping_interval; < 0: never; NAN: the server's */

    cJSON *tree;
    void **owned;
    size_t n_owned, cap_owned;
};

/* Reads and checks a request. Takes `tree` over, also on failure. `info` gives the vocabulary's
 * size and whether there is a twin. Appends names of fields nobody knows to *unknown,
 * space-separated. */
int params_read(struct params *ret_params, enum field_route route, cJSON *tree,
                const struct engine_info *info, struct buf *unknown, struct http_error *ret_error);
void params_free(struct params *params);

/* What the readers of single fields share (fields.c and fields_prompt.c). */
const char *json_type_name(const cJSON *value);
int field_wrong_type(struct http_error *e, const char *param, const char *expected,
                     const cJSON *value);
/* A whole number in [min, max]. */
int field_read_integer(const cJSON *value, const char *param, double min, double max,
                       double *ret_value, struct http_error *e);
int field_too_many(struct http_error *e, const char *param, size_t max, size_t n);
/* Memory that lives as long as the params; NULL when there is none left. */
void *params_alloc(struct params *params, size_t n, size_t size);

int field_read_messages(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e);
int field_read_prompt(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_stop(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_logit_bias(struct params *p, const char *name, const cJSON *value,
                          struct http_error *e);

#endif
