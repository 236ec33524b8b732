/* The one error type of the engine: a code plus a message that names what was wrong and where.
 * Functions that can fail return 0 or a negative value, take `struct error *` last and leave
 * their `ret_` outputs untouched on failure. Whoever handles an error logs it, once. */
#ifndef OVERFILL_ENGINE_BASE_ERROR_H
#define OVERFILL_ENGINE_BASE_ERROR_H

enum error_code {
    ERROR_NONE = 0,
    ERROR_INVALID,     /* the caller's or client's argument is wrong */
    ERROR_CONTEXT,     /* prompt (and max_tokens) do not fit the context */
    ERROR_IO,          /* the operating system refused; message carries strerror */
    ERROR_FORMAT,      /* a file's content is not what its format says */
    ERROR_UNSUPPORTED, /* valid, but not something this program does */
    ERROR_MEMORY,      /* an allocation failed; only this request is affected */
    ERROR_BUSY,        /* a bounded queue or budget is full; try again later */
    ERROR_CANCELLED,   /* the caller cancelled it */
    ERROR_SHUTDOWN,    /* the engine is closing or draining */
    ERROR_INTERNAL,    /* a bug of ours, noticed */
};

struct error {
    enum error_code code;
    char message[500];
};

/* Fills *err (may be NULL) and returns -code, so that a function can `return error_set(...)`. */
__attribute__((format(printf, 3, 4))) int error_set(struct error *err, enum error_code code,
                                                    const char *fmt, ...);

/* Puts "prefix: " in front of the message of an error on its way up. Returns -err->code. */
__attribute__((format(printf, 2, 3))) int error_prefix(struct error *err, const char *fmt, ...);

/* "out of memory: WHAT (BYTES bytes)"; returns -ERROR_MEMORY. */
int error_memory(struct error *err, const char *what, unsigned long long bytes);

#endif
