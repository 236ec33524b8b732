/* A team of threads that runs one function together, with barriers and a shared unit counter: the
 * parallelism of a forward pass. Member 0 is the thread that calls team_run; the others are kept
 * waiting between runs. A barrier spins shortly, then sleeps on a futex, so that a team which waits
 * leaves its CPUs to others. */
#ifndef OVERFILL_ENGINE_BASE_TEAM_H
#define OVERFILL_ENGINE_BASE_TEAM_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct team;

/* Runs on every member; `member` is 0..team_size-1. */
typedef void team_fn(struct team *team, unsigned member, void *context);

/* name: thread names (at most 11 characters count). nice: added to the threads' nice value, 0..19.
 */
int team_open(unsigned n_threads, const char *name, int nice, struct team **ret_team,
              struct error *err);
void team_close(struct team *team);
unsigned team_size(const struct team *team);

/* Returns when every member has returned from fn. One caller at a time; what it wrote before is
 * seen by all members, what they wrote is seen by it afterwards. */
void team_run(struct team *team, team_fn *fn, void *context);

/* Inside fn. Waits for all members, and starts the units again at 0. */
void team_barrier(struct team *team);
/* Inside fn, between two barriers: the next of n_units that nobody has, or false. */
bool team_claim(struct team *team, size_t n_units, size_t *ret_unit);

#endif
