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

/* Fills *err (may be NULL) and gives -code, so that a function can `return error_set(...)`. A
 * macro, so that compiler and analyser see a constant that is never 0. */
#define error_set(err, code, ...) (error_fill((err), (code), __VA_ARGS__), error_result(code))
static inline int error_result(enum error_code code)
{
    return -(int)code;
}
__attribute__((format(printf, 3, 4))) void error_fill(struct error *err, enum error_code code,
                                                      const char *fmt, ...);

/* Puts "prefix: " in front of the message of an error on its way up. Returns -err->code. */
__attribute__((format(printf, 2, 3))) int error_prefix(struct error *err, const char *fmt, ...);

/* "out of memory: WHAT (BYTES bytes)"; gives -ERROR_MEMORY. */
static inline int error_memory(struct error *err, const char *what, unsigned long long bytes)
{
    return error_set(err, ERROR_MEMORY, "out of memory: %s (%llu bytes)", what, bytes);
}

#endif
