/* A client's JSON: checked against the grammar and our limits before cJSON builds a tree of it.
 * cJSON alone takes what is not JSON (raw control characters, odd numbers, broken UTF-8), cuts
 * strings at \u0000 and would build a tree of any size; the check refuses all that first. */
#ifndef OVERFILL_SERVER_JSON_READ_H
#define OVERFILL_SERVER_JSON_READ_H

#include "server/errors.h"

#include <cjson/cJSON.h>
#include <stddef.h>

#define JSON_MAX_DEPTH 64       /* nested arrays and objects */
#define JSON_MAX_VALUES 1000000 /* in one body: a tree of them takes about 64 bytes each */

/* Routes cJSON's allocations through engine/base/mem.h. Process-wide, the same every time. */
void json_setup(void);

/* 0 if text[len] is one JSON value within the limits. Iterative, O(len), allocates nothing. */
int json_check(const char *text, size_t len, struct http_error *ret_error);

/* Checks and parses an object. The caller frees it with cJSON_Delete. An integer among its own
 * members that has more than 15 digits keeps them, with a '-' if it is negative, in valuestring:
 * the double beside it may be rounded. */
int json_parse_object(const char *text, size_t len, cJSON **ret_object,
                      struct http_error *ret_error);

#endif
