/* The chat template families as data: what stands around each role's text. Rendering is in
 * chat_template.c; a new family is a new entry in chat_families.c. */
#ifndef OVERFILL_ENGINE_TOKENIZER_CHAT_FAMILIES_H
#define OVERFILL_ENGINE_TOKENIZER_CHAT_FAMILIES_H

#include <stdbool.h>
#include <stddef.h>

#define CHAT_MAX_MARKS 4

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL, CHAT_N_ROLES };

/* open: NULL means that the family has no place for this role. */
struct chat_turn {
    const char *open, *close;
    const char *join; /* between two turns of this role in a row, for close and open; NULL: as is */
};

/* Where the family has no system turn, system text stands at the start of a user's text. */
enum chat_system_place { CHAT_SYSTEM_OWN_TURN, CHAT_SYSTEM_IN_NEXT_USER, CHAT_SYSTEM_IN_LAST_USER };

struct chat_template {
    const char *name;
    /* Recognised when the Jinja source has all of `marks` and none of `absent`; the first entry of
     * the table that fits counts. No marks: only by name. */
    const char *marks[CHAT_MAX_MARKS];
    const char *absent[CHAT_MAX_MARKS];
    struct chat_turn turns[CHAT_N_ROLES];
    const char *generation;     /* opens the answer */
    const char *default_system; /* content of a system turn if messages[0] is none; NULL: no turn */
    enum chat_system_place system_place;
    bool trims;          /* white space around contents is dropped */
    bool trims_answers;  /* the same, assistant's only */
    bool drops_thoughts; /* of an assistant's text, only what follows the last </think> counts */
};

extern const struct chat_template chat_families[];
extern const size_t n_chat_families;
extern const char chat_family_names[]; /* "chatml, llama3, ..." */

#endif
