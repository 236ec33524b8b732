/* The table of settings. Not how they are read (settings.c, yaml.c); config/overfill.yaml explains
 * the same keys at length, and a test keeps the two equal. */
#include "config/settings.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define KEY(group_, name_, type_, scope_, member, ...)                                             \
    {                                                                                              \
        .group = group_, .name = name_, .type = SETTING_##type_, .scope = SETTING_##scope_,        \
        .offset = offsetof(struct settings, member), __VA_ARGS__                                   \
    }

#define MAX_THREADS 1024
#define MAX_CONTEXT (1u << 24)

static const struct setting_key KEYS[] = {
    KEY("engine", "model", STRING, ENGINE, model, .unit = "FILE", .preset = "",
        .help = "full model: a GGUF file or a Hugging Face folder (required)"),
    KEY("engine", "pruned", STRING, ENGINE, pruned, .unit = "FILE", .preset = "",
        .help = "pruned twin that decodes; without it the full model decodes"),
    KEY("engine", "model-id", STRING, SERVE, model_id, .unit = "NAME", .preset = "",
        .help = "name of the model on the wire; empty: derived from the file's name"),
    KEY("engine", "chat-template", STRING, ENGINE, chat_template, .unit = "NAME", .preset = "",
        .help = "chat template family; empty: recognised from the model file"),
    KEY("engine", "decode", CHOICE, ENGINE, decode, .preset = "auto",
        .choices = "auto|pruned|refresh|verify|full",
        .help = "who writes the answer after the first token; auto: the twin if there is one"),
    KEY("engine", "every", UINT, ENGINE, every, .unit = "TOKENS", .preset = "0", .max = 256,
        .help = "how often the full model comes by in refresh and verify; 0: 16 and 4"),
    KEY("engine", "weights", CHOICE, ENGINE, weights, .preset = "auto", .choices = "auto|q8|f32",
        .help = "how weights lie in memory; auto: 4-bit blocks stay, the rest becomes 8-bit"),
    KEY("engine", "activations", CHOICE, ENGINE, activations, .preset = "12", .choices = "8|12",
        .help = "bits of what the full model's products multiply with weights; 8: faster, less "
                "exact"),
    KEY("engine", "pruned-activations", CHOICE, ENGINE, pruned_activations, .preset = "auto",
        .choices = "auto|8|12",
        .help = "the same of the twin; auto: 8, but as the full model's if nothing was cut or "
                "rounded"),
    KEY("engine", "kv-type", CHOICE, ENGINE, kv_type, .preset = "f16",
        .choices = "f16|bf16|f32|q8_0", .help = "number type of the KV cache"),
    KEY("engine", "context", UINT, ENGINE, context, .unit = "TOKENS", .preset = "0",
        .max = MAX_CONTEXT,
        .help = "tokens one request may use, prompt and answer; 0: what the model was trained "
                "for, at most 8192"),
    KEY("engine", "kv-memory", SIZE, ENGINE, kv_memory, .unit = "SIZE", .preset = "0",
        .help = "memory of all KV pages, e.g. 2GiB; 0: a quarter of the memory, at most 4GiB"),
    KEY("engine", "prefill-threads", UINT, ENGINE, prefill_threads, .unit = "N", .preset = "0",
        .max = MAX_THREADS,
        .help = "threads of the prefill pool, lent to decode while idle; 0: half of the CPUs"),
    KEY("engine", "decode-threads", UINT, ENGINE, decode_threads, .unit = "N", .preset = "0",
        .max = MAX_THREADS,
        .help = "threads of the decode pool, lent to prefill while idle; 0: half of the CPUs"),
    KEY("engine", "max-sequences", UINT, SERVE, max_sequences, .unit = "N", .preset = "0",
        .max = 65536, .help = "sequences decoding at once; 0: 64"),
    KEY("engine", "max-queue", UINT, SERVE, max_queue, .unit = "N", .preset = "0", .max = 1000000,
        .help = "requests that may wait before clients get 429; 0: 512"),
    KEY("engine", "max-queue-tokens", UINT, SERVE, max_queue_tokens, .unit = "TOKENS",
        .preset = "0", .max = UINT32_MAX,
        .help = "prompt tokens that may wait before clients get 429; 0: 1000000"),
    KEY("engine", "prefill-chunk-ms", UINT, SERVE, prefill_chunk_ms, .unit = "MS", .preset = "0",
        .max = 60000, .help = "time that one prefill chunk aims at; 0: 25"),
    KEY("engine", "prefix-cache", CHOICE, SERVE, prefix_cache, .preset = "on", .choices = "on|off",
        .help = "keep the pages of prompts for others that begin alike"),
    KEY("engine", "packed-cache", STRING, ENGINE, packed_cache, .unit = "DIR", .preset = "",
        .help = "folder where packed weights are kept, so that the next start maps them; empty: "
                "they are not"),
    KEY("engine", "state-dir", STRING, SERVE, state_dir, .unit = "DIR", .preset = "",
        .help = "folder where the prefix cache outlives a restart; empty: it does not"),
    KEY("engine", "state-size", SIZE, SERVE, state_size, .unit = "SIZE", .preset = "1GiB",
        .help = "how much of it is kept in state-dir, the latest first"),
    KEY("engine", "background", CHOICE, SERVE, background, .preset = "on", .choices = "on|off",
        .help = "while idle the full model reads finished answers, for the turn that follows"),
    KEY("engine", "shadow-rate", SHARE, SERVE, shadow_rate, .unit = "SHARE", .preset = "0",
        .help = "share of the twin's answers that both models score while idle, 0 to 1"),
    KEY("server", "host", STRING, SERVE, host, .unit = "ADDRESS", .preset = "127.0.0.1",
        .help = "address to listen on; 0.0.0.0 or :: for all"),
    KEY("server", "port", UINT, SERVE, port, .unit = "PORT", .preset = "8080", .max = 65535,
        .help = "TCP port; 0: one that is free"),
    KEY("server", "max-body", SIZE, SERVE, max_body, .unit = "SIZE", .preset = "8MiB",
        .help = "largest request body"),
    KEY("server", "max-bodies", SIZE, SERVE, max_bodies, .unit = "SIZE", .preset = "64MiB",
        .help = "request bodies being received, all together"),
    KEY("server", "max-connections", UINT, SERVE, max_connections, .unit = "N", .preset = "1024",
        .min = 1, .max = 65535, .help = "open connections"),
    KEY("server", "max-connections-per-address", UINT, SERVE, max_connections_per_address,
        .unit = "N", .preset = "0", .max = 65535,
        .help = "open connections from one address; 0: no limit of its own"),
    KEY("server", "idle-seconds", UINT, SERVE, idle_seconds, .unit = "SECONDS", .preset = "75",
        .max = 86400, .help = "a connection on which nothing moves is closed after so long"),
    KEY("server", "header-seconds", UINT, SERVE, header_seconds, .unit = "SECONDS", .preset = "30",
        .max = 86400, .help = "a request's headers must be complete within; 0: no limit"),
    KEY("server", "body-seconds", UINT, SERVE, body_seconds, .unit = "SECONDS", .preset = "120",
        .max = 86400, .help = "a request must be complete within; 0: no limit"),
    KEY("server", "ping-seconds", UINT, SERVE, ping_seconds, .unit = "SECONDS", .preset = "15",
        .max = 86400, .help = "a stream silent for so long gets a comment line"),
    KEY("server", "drain-seconds", UINT, SERVE, drain_seconds, .unit = "SECONDS", .preset = "30",
        .max = 86400, .help = "after SIGTERM running answers may go on for so long"),
    KEY("server", "stall-seconds", UINT, SERVE, stall_seconds, .unit = "SECONDS", .preset = "30",
        .min = 1, .max = 86400,
        .help = "/health says 503 when a pool with work made no step for so long"),
    KEY("server", "api-keys", STRING, SERVE, api_keys, .unit = "KEYS", .preset = "",
        .is_secret = true,
        .help = "keys that clients must show, separated by commas; empty: every client is let in; "
                "a flag is visible to all users of the machine, so prefer the file or environment"),
    KEY("server", "api-key-file", STRING, SERVE, api_key_file, .unit = "FILE", .preset = "",
        .help = "more keys, a line each; SIGHUP reads the file again"),
    KEY("server", "allow-open", CHOICE, SERVE, allow_open, .preset = "no", .choices = "no|yes",
        .help = "yes: listen beyond this machine though no key is set"),
    KEY("server", "requests-per-minute", UINT, SERVE, requests_per_minute, .unit = "N",
        .preset = "0", .max = 1000000000,
        .help = "requests that a key may make in a minute; 0: no limit"),
    KEY("server", "tokens-per-minute", UINT, SERVE, tokens_per_minute, .unit = "N", .preset = "0",
        .max = 1000000000,
        .help = "prompt and answer tokens that a key may use in a minute; 0: no limit"),
    KEY("server", "tls-cert", STRING, SERVE, tls_cert, .unit = "FILE", .preset = "",
        .help = "certificate chain (PEM): HTTPS instead of HTTP"),
    KEY("server", "tls-key", STRING, SERVE, tls_key, .unit = "FILE", .preset = "",
        .help = "its private key (PEM)"),
    KEY("server", "cors-origins", STRING, SERVE, cors_origins, .unit = "ORIGINS", .preset = "",
        .help = "origins whose pages may use the server, separated by commas; * for all"),
    KEY("server", "sandbox", CHOICE, SERVE, sandbox, .preset = "auto", .choices = "auto|off",
        .help = "auto: give up files and system calls that are not needed, where the kernel can"),
    KEY("server", "log-level", CHOICE, SERVE, log_level, .preset = "info",
        .choices = "error|warn|info|debug", .help = "what is logged on stderr"),
};

#define N_KEYS (sizeof(KEYS) / sizeof(KEYS[0]))
_Static_assert(N_KEYS <= SETTINGS_MAX_KEYS, "origin[] has a place for every key");

const struct setting_key *settings_keys(size_t *ret_n)
{
    *ret_n = N_KEYS;
    return KEYS;
}

const struct setting_key *settings_find(const char *name)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(KEYS[i].name, name) == 0)
            return &KEYS[i];
    return NULL;
}

bool settings_environment_name(const struct setting_key *key, char *name, size_t bytes)
{
    int n = snprintf(name, bytes, "OVERFILL_%s", key->name);
    if (n < 0 || (size_t)n >= bytes)
        return false;
    for (char *c = name; *c; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    return true;
}
