/* Every setting of the program: one table of keys, from which come the YAML schema, the
 * environment names, the flags, the help and --print-config. Four sources; a later one wins
 * whatever the order in which they are read: defaults, file, environment (OVERFILL_*), flags.
 *
 * A settings struct belongs to one thread until it is filled; then it is only read. */
#ifndef OVERFILL_CONFIG_SETTINGS_H
#define OVERFILL_CONFIG_SETTINGS_H

#include "engine/base/buf.h"
#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Who takes a key: a command asks for the keys of its scopes. */
enum setting_scope {
    SETTING_ENGINE = 1, /* any command that opens an engine */
    SETTING_SERVE = 2,  /* only the server: its sockets, queues and batches */
};

enum setting_type {
    SETTING_STRING, /* char *: "" stands for none */
    SETTING_CHOICE, /* char *: one of the choices */
    SETTING_UINT,   /* uint32_t within min..max */
    SETTING_SHARE,  /* double within 0..1 */
    SETTING_SIZE,   /* size_t: bytes; text may end in kB, MB, GB, TB or KiB, MiB, GiB, TiB */
};

enum setting_source { SOURCE_DEFAULT, SOURCE_FILE, SOURCE_ENVIRONMENT, SOURCE_FLAG };

/* What a key is. The flag is --NAME; the environment name OVERFILL_NAME with '-' as '_'. */
struct setting_key {
    const char *group; /* mapping in the file: "engine", "server" */
    const char *name;
    enum setting_type type;
    unsigned scope;
    size_t offset;       /* in struct settings */
    const char *unit;    /* placeholder in the help: "FILE", "N", "SIZE", ... */
    const char *preset;  /* default, as it would stand in the file */
    const char *choices; /* SETTING_CHOICE: "a|b|c" */
    uint32_t min, max;   /* SETTING_UINT */
    const char *help;
    bool is_secret; /* settings_print hides the value */
};

#define SETTINGS_MAX_KEYS 64

struct settings {
    /* engine: what engine_open needs */
    char *model;
    char *pruned;
    char *model_id;
    char *chat_template;
    char *decode; /* auto, pruned, refresh, verify, full */
    uint32_t every;
    char *weights;            /* auto, q8, f32 */
    char *activations;        /* 8, 12 */
    char *pruned_activations; /* auto, 8, 12 */
    char *kv_type;            /* f16, bf16, f32, q8_0 */
    uint32_t context;
    size_t kv_memory;
    uint32_t prefill_threads;
    uint32_t decode_threads;
    uint32_t max_sequences;
    uint32_t max_queue;
    uint32_t max_queue_tokens;
    uint32_t prefill_chunk_ms;
    char *prefix_cache; /* on, off */
    char *packed_cache;
    char *state_dir;
    size_t state_size;
    char *background; /* on, off */
    double shadow_rate;
    /* server */
    char *host;
    uint32_t port;
    size_t max_body;
    size_t max_bodies;
    uint32_t max_connections;
    uint32_t max_connections_per_address;
    uint32_t idle_seconds;
    uint32_t header_seconds;
    uint32_t body_seconds;
    uint32_t ping_seconds;
    uint32_t drain_seconds;
    uint32_t stall_seconds;
    char *api_keys; /* separated by commas */
    char *api_key_file;
    char *allow_open; /* no, yes */
    uint32_t requests_per_minute;
    uint32_t tokens_per_minute;
    char *tls_cert;
    char *tls_key;
    char *cors_origins;
    char *sandbox;   /* auto, off */
    char *log_level; /* error, warn, info, debug */

    /* where each value came from, by index in the key table */
    struct {
        enum setting_source source;
        unsigned line; /* SOURCE_FILE */
    } origin[SETTINGS_MAX_KEYS];
    char *file; /* --config or OVERFILL_CONFIG, or NULL */
};

/* The table. */
const struct setting_key *settings_keys(size_t *ret_n);
/* The key with this name, or NULL. */
const struct setting_key *settings_find(const char *name);
/* "OVERFILL_KV_MEMORY" of "kv-memory"; false when it does not fit. */
bool settings_environment_name(const struct setting_key *key, char *name, size_t bytes);

/* Fills *settings with the defaults. settings_free afterwards, also on failure. */
int settings_init(struct settings *settings, struct error *err);
void settings_free(struct settings *settings);

/* Sets one key from text. Kept only if `source` is not weaker than what set it before. `where`
 * names the origin in the error message ("--port", "overfill.yaml:12: server.port"). */
int settings_set(struct settings *settings, const struct setting_key *key, const char *text,
                 enum setting_source source, unsigned line, const char *where, struct error *err);

/* Remembers the file to read: a flag wins over OVERFILL_CONFIG. */
int settings_set_file(struct settings *settings, const char *path, struct error *err);
/* Reads OVERFILL_* of the process and then the file, if one is named. */
int settings_load(struct settings *settings, struct error *err);
/* Reads one YAML file. A wrong key, type or value is an error that names file and line. */
int settings_load_file(struct settings *settings, const char *path, struct error *err);

/* The value as it would stand in a file. */
void settings_value_text(const struct settings *settings, const struct setting_key *key,
                         struct buf *out);
/* All settings as YAML, each with a comment that says where its value came from. */
void settings_print(const struct settings *settings, struct buf *out);
/* The help of the keys of these scopes, a line or more each. */
void settings_help(unsigned scope, struct buf *out);
/* One option of a help text: the flag, then the text, wrapped in a column beside it. */
void settings_help_line(const char *flag, const char *text, struct buf *out);

#endif
