/* The request fields of every route that takes a body: ONE table (field_table.c) says each field's
 * name, type, range, default, routes and meaning. The validator and its error texts (fields.c),
 * /openapi.json (openapi.c) and docs/API.md (api_docs.c) all come from it. The result of reading is
 * a plain struct that the handlers hand to the engine. */
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

enum field_route {
    ON_CHAT = 1,
    ON_COMPLETIONS = 2,
    ON_RESPONSES = 4,
    ON_MESSAGES = 8, /* Anthropic's /v1/messages */
    ON_COUNT = 16,   /* Anthropic's count_tokens */
    ON_TOKENIZE = 32,
    ON_DETOKENIZE = 64,
    ON_BOTH = ON_CHAT | ON_COMPLETIONS,
    ON_GENERATE = ON_BOTH | ON_RESPONSES | ON_MESSAGES,
    ON_ANTHROPIC = ON_MESSAGES | ON_COUNT,
    ON_ALL = ON_GENERATE | ON_COUNT | ON_TOKENIZE | ON_DETOKENIZE,
};

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
    struct chat_message *messages; /* chat, responses, messages, count, tokenize */
    size_t n_messages;
    struct chat_message system; /* instructions; .role NULL: none. Put in front of the messages */
    struct prompt *prompts;     /* completions; tokenize and detokenize: one */
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
    bool logprobs;             /* chat; responses: asked for with `include` */
    int32_t top_logprobs;      /* chat, responses */
    int32_t n_logprobs;        /* for the engine: -1 none, 0 the token's own, k and the k best */
    int32_t n_prompt_logprobs; /* the same of the prompt, without `echo` */
    struct stop_string stops[PARAMS_MAX_STOPS];
    size_t n_stops;
    struct sampling_params sampling;
    bool seed_given;
    enum decode_mode decode;
    uint32_t decode_every; /* 0: not given */
    int32_t priority;
    bool cache_prompt;
    double ping_s; /* llama-server's sse_ping_interval; < 0: never; NAN: the server's */
    /* tokenize */
    const char *content;
    bool add_special_tokens, add_special, add_generation_prompt;
    bool with_pieces, return_token_strs;

    cJSON *tree;
    void **owned;
    size_t n_owned, cap_owned;
};

/* Reads and checks a request. Takes `tree` over, also on failure. `info` gives the vocabulary's
 * size and whether there is a twin. Appends names of fields nobody knows to *unknown,
 * space-separated. Any thread. */
int params_read(struct params *ret_params, enum field_route route, cJSON *tree,
                const struct engine_info *info, struct buf *unknown, struct http_error *ret_error);
void params_free(struct params *params);

/* --- the table (field_table.c) ------------------------------------------------------------- */

enum field_kind {
    FIELD_BOOL,        /* bool at offset */
    FIELD_UINT,        /* uint32_t at offset */
    FIELD_INT,         /* int32_t at offset */
    FIELD_FLOAT,       /* float at offset */
    FIELD_DOUBLE,      /* double at offset */
    FIELD_STRING,      /* const char * at offset */
    FIELD_READ,        /* read(); `schema` says what it takes */
    FIELD_ACCEPTED,    /* has no effect on an answer of ours: taken and left */
    FIELD_UNSUPPORTED, /* refused unless its value asks for nothing (null, false, empty, neutral) */
};

typedef int (*field_reader)(struct params *p, const char *name, const cJSON *value,
                            struct http_error *e);

struct field {
    const char *name;
    unsigned
        routes; /* enum field_route bits; a name may stand in several rows for different ones */
    enum field_kind kind;
    double min, max;
    size_t offset;
    field_reader read;
    const char *schema;  /* FIELD_READ: its JSON schema, with ' for " */
    const char *preset;  /* the default as JSON, NULL: none */
    const char *neutral; /* FIELD_UNSUPPORTED: a JSON scalar that asks for nothing */
    unsigned required;   /* routes that cannot do without it */
    const char *help;
};
const struct field *field_table(size_t *ret_n);
const struct field *field_find(const char *name, enum field_route route); /* NULL: unknown */
bool field_neutral_is_string(const struct field *field); /* else a number or true; it has one */

/* --- what the readers of single fields share ----------------------------------------------- */

const char *json_type_name(const cJSON *value);
int field_wrong_type(struct http_error *e, const char *param, const char *expected,
                     const cJSON *value);
int field_missing(struct http_error *e, const char *param);
int field_unsupported(struct http_error *e, const char *param);
int field_empty_array(struct http_error *e, const char *param);
int field_too_many(struct http_error *e, const char *param, size_t max, size_t n);
/* A whole number in [min, max]. */
int field_read_integer(const cJSON *value, const char *param, double min, double max,
                       double *ret_value, struct http_error *e);
/* An optional boolean member of an object field. */
int field_read_member_bool(const cJSON *object, const char *name, const char *param,
                           bool *ret_value, struct http_error *e);
/* Memory that lives as long as the params; NULL when there is none left. */
void *params_alloc(struct params *params, size_t n, size_t size);

/* fields_messages.c */
int field_read_messages(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e);
int field_read_input(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_system(struct params *p, const char *name, const cJSON *value, struct http_error *e);
/* Puts p->system in front of the messages. */
int params_place_system(struct params *p, struct http_error *e);

/* fields_prompt.c */
int field_read_prompt(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_tokens(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_stop(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_logit_bias(struct params *p, const char *name, const cJSON *value,
                          struct http_error *e);

/* fields_options.c */
int field_read_seed(struct params *p, const char *name, const cJSON *value, struct http_error *e);
int field_read_stream_options(struct params *p, const char *name, const cJSON *value,
                              struct http_error *e);
int field_read_overfill(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e);
int field_read_response_format(struct params *p, const char *name, const cJSON *value,
                               struct http_error *e);
int field_read_text_format(struct params *p, const char *name, const cJSON *value,
                           struct http_error *e);
int field_read_modalities(struct params *p, const char *name, const cJSON *value,
                          struct http_error *e);
int field_read_include(struct params *p, const char *name, const cJSON *value,
                       struct http_error *e);
int field_read_thinking(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e);

#endif
