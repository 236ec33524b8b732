/* Requests of many kinds, and what each gets when it runs alone: whatever else happens, its answer
 * has to be that. */
#ifndef OVERFILL_TESTS_UNIT_POOL_MENU_H
#define OVERFILL_TESTS_UNIT_POOL_MENU_H

#include "tests/unit/pool/rig.h"

#define MENU_DISHES 48
#define MENU_MOST_PROMPT 300

struct menu {
    int32_t prompts[MENU_DISHES][MENU_MOST_PROMPT];
    struct engine_request requests[MENU_DISHES];
    struct rig_result *alone; /* [MENU_DISHES] */
};

/* Runs each request by itself, on one thread a stage, with room for all and nothing remembered.
 * `options` tell the models and types. */
struct menu *menu_open(struct engine_options options);
void menu_close(struct menu *menu);
/* Same as alone, unless it was cancelled. */
void menu_expect(const struct menu *menu, size_t dish, const struct rig_result *result);

/* The next number below n of a sequence that the seed decides. */
uint32_t menu_random(uint32_t *seed, uint32_t n);

#endif
