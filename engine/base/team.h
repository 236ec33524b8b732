/* Teams: the threads of a stage, and how stages lend them to each other. A team's leader is the
 * thread that runs its passes; it cuts each phase of a pass into units (team_for) and takes units
 * itself. Who else takes some: the team's own helper threads, and any thread of the same crew whose
 * own team has nothing to do at that moment - an idle leader included, while it waits in team_wait.
 * Each member begins with a run of neighbouring units, the same in every phase of equal size.
 * A phase ends when its units are done, not when every thread has come by, so a thread that is
 * busy elsewhere, or not scheduled, holds nobody up; a lent thread is back after one unit.
 *
 * So the crew never has more busy threads than its teams have threads in all: with as many of these
 * as CPUs, both stages busy means both have their own, one stage busy means it has them all. */
#ifndef OVERFILL_ENGINE_BASE_TEAM_H
#define OVERFILL_ENGINE_BASE_TEAM_H

#include "engine/base/error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define CREW_MAX_TEAMS 4

struct crew;
struct team;

/* Runs one unit. `member` tells the crew's threads apart: 0..crew_size-1, for their scratch memory.
 */
typedef void team_unit_fn(void *context, unsigned member, size_t unit);

/* may_spin: idle threads stay awake for some microseconds. False under a CPU quota and with more
 * threads than CPUs, since they would eat the workers' time. */
int crew_open(bool may_spin, struct crew **ret_crew, struct error *err);
void crew_close(struct crew *crew); /* after its teams; NULL is fine */
/* Threads of all its teams, leaders included. Open all teams before anything is sized by it. */
unsigned crew_size(const struct crew *crew);

/* n_threads counts the leader, which is the thread that calls the functions below: n_threads - 1
 * threads are started. crew NULL: a crew of its own. name: at most 11 characters show. */
int team_open(unsigned n_threads, const char *name, struct crew *crew, struct team **ret_team,
              struct error *err);
void team_close(struct team *team); /* NULL is fine */
struct crew *team_crew(struct team *team);
/* The leader: its threads, itself included, give way to others of the process where there are more
 * than CPUs (nice(2), 0..19; cannot be undone). Where the system refuses, nothing changes. */
void team_give_way(struct team *team, int nice);

/* A pass: phases that follow each other closely. Helpers stay awake longer between them. */
void team_begin(struct team *team);
void team_end(struct team *team);
/* Runs units 0..n_units-1 and returns when all are done. What the leader wrote before is seen by
 * the units, what they wrote is seen by it after. May be called outside a pass too. n_units < 2^32.
 */
void team_for(struct team *team, size_t n_units, team_unit_fn *fn, void *context);

/* The leader has nothing to do until *wanted: it lends itself to the other teams of its crew, and
 * sleeps when these have nothing either. Whoever sets *wanted calls team_notify after it. */
void team_wait(struct team *team, const atomic_bool *wanted);
void team_notify(struct team *team); /* any thread */

#endif
