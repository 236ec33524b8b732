/* What a client is told when a request cannot be served: one value that carries the HTTP status and
 * the four members of OpenAI's error object. Filled by whoever finds the fault, written once by
 * errors.c. Loop thread only. */
#ifndef OVERFILL_SERVER_ERRORS_H
#define OVERFILL_SERVER_ERRORS_H

#include "engine/base/buf.h"
#include "engine/base/error.h"

#include <stdint.h>

/* Why a request was turned away: label `reason` of overfill_requests_rejected_total. */
enum reject_reason {
    REJECT_NONE, /* not counted as a rejection (a fault of ours, a client that left) */
    REJECT_INVALID,
    REJECT_CONTEXT,
    REJECT_MODEL,
    REJECT_ROUTE,
    REJECT_TOO_LARGE,
    REJECT_KEY,
    REJECT_BUSY,
    REJECT_RATE,
    REJECT_TIMEOUT,
    REJECT_MEMORY,
    REJECT_LOADING,
    REJECT_DRAINING,
    N_REJECT_REASONS,
};
const char *reject_reason_name(enum reject_reason reason);

struct http_error {
    unsigned status;
    const char *type; /* a literal */
    const char *code; /* a literal, or NULL: null on the wire; never a number */
    char param[96];   /* the field at fault, "" for null */
    char message[600];
    enum reject_reason reason;
    uint32_t n_prompt_tokens; /* extra members of a context error, when n_ctx is not 0 */
    uint32_t n_ctx;
    unsigned retry_after_s;  /* 0: no retry-after header */
    unsigned retry_after_ms; /* instead, when it is known that well */
};

/* Fills *e as a client's mistake: 400 invalid_request_error. Returns -1 for `return
 * http_invalid()`. param may be NULL, code may be NULL. */
__attribute__((format(printf, 4, 5))) int http_invalid(struct http_error *e, const char *param,
                                                       const char *code, const char *fmt, ...);
/* Any other status; type and reason follow from it. */
__attribute__((format(printf, 4, 5))) int http_error_set(struct http_error *e, unsigned status,
                                                         const char *code, const char *fmt, ...);
int http_out_of_memory(struct http_error *e);

/* Translates an engine's error. `param` names the field that holds the prompt. The counts matter
 * for ERROR_CONTEXT only. max_tokens: UINT32_MAX when the client asked for none. */
void http_error_from_engine(struct http_error *e, const struct error *err, const char *param,
                            uint32_t n_prompt_tokens, uint32_t n_ctx, uint32_t max_tokens);

/* Whose error object a route speaks. */
enum dialect { DIALECT_OPENAI, DIALECT_ANTHROPIC };

/* Appends {"error":{...}}, or {"type":"error","error":{...}}. */
void http_error_write(struct buf *out, const struct http_error *e, enum dialect dialect);
/* Only OpenAI's inner object. */
void http_error_write_object(struct buf *out, const struct http_error *e);

#endif
