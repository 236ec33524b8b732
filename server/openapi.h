/* The API's description: OpenAPI 3.1 as JSON, made from the table of request fields and a table of
 * operations. */
#ifndef OVERFILL_SERVER_OPENAPI_H
#define OVERFILL_SERVER_OPENAPI_H

#include "engine/base/buf.h"
#include "server/fields.h"

/* model_id: the served model, which `model` then must be; NULL: any text. */
void openapi_write(struct buf *out, const char *model_id);

/* What a request's operation is called, and its schema's name: for openapi.c and api_docs.c. */
struct operation {
    const char *method, *path;
    const char *summary;
    enum field_route route; /* 0: takes no body */
    const char *request;    /* name of the request's schema */
    const char *reply;      /* of the reply's, NULL: plain text */
    bool streams, needs_key;
};
extern const struct operation OPERATIONS[];
extern const size_t N_OPERATIONS;

#endif
