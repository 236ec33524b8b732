/* The engine's error values. See error.h. */
#include "engine/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void error_fill(struct error *err, enum error_code code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->code = code;
        vsnprintf(err->message, sizeof(err->message), fmt, args);
        va_end(args);
    }
}

int error_prefix(struct error *err, const char *fmt, ...)
{
    char old[sizeof(err->message)];
    va_list args;

    memcpy(old, err->message, sizeof(old));
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof(err->message), fmt, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof(err->message))
        snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s", old);
    return -(int)err->code;
}
