/* overfill generate --questions: the model answers every line of a file, many at once, and the
 * chats come out as JSONL rows of `messages`: text of the model's own, for `overfill prune` to
 * calibrate a twin on. */
#ifndef OVERFILL_CLI_CHATS_H
#define OVERFILL_CLI_CHATS_H

#include "engine/engine.h"

#define CHATS_AT_ONCE 16

struct chats {
    const char *path; /* one question a line; empty lines are skipped */
    /* Of every answer, but messages, user and seed; the answer to line i of n has seed + i. */
    struct engine_request request;
    void (*progress)(void *user, const char *what, double share);
    void *user;
};

/* Rows on stdout, in the order of the questions, the same for any batch. */
int chats_run(const struct chats *chats, struct engine *engine, struct error *err);

#endif
