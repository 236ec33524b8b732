/* Teams and crews of threads. See team.h. */
#include "engine/base/team.h"

#include "engine/base/mem.h"
#include "engine/base/system.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Pauses before an idle thread sleeps: some 10 us, and within a pass some 100, which outlasts the
 * wait for the next phase but not another program's turn on the CPU. Never sched_yield: it gives up
 * the whole turn, and on a busy machine the next one is far away. */
#define SPINS 500
#define SPINS_IN_PASS 5000

/* Runs that a phase's units are cut into at most, one for each member. */
#define MAX_RUNS 64

struct crew {
    bool may_spin;
    bool is_private;
    atomic_uint n_members; /* whole before any team runs */
    struct team
        *teams[CREW_MAX_TEAMS]; /* [n_teams]; entries are written before n_teams counts them */
    atomic_uint n_teams;
    /* Counts reasons to look again. A sleeper waits for it to change: it reads the epoch, looks for
     * work, counts itself as sleeping, and only then sleeps unless the epoch has moved; who makes
     * work moves the epoch first and looks for sleepers after. All sequentially consistent, so one
     * of the two notices the other. */
    _Alignas(64) atomic_uint epoch;
    atomic_uint n_sleeping;
};

struct team_thread {
    struct team *team;
    unsigned member;
    pthread_t thread;
    atomic_int tid; /* 0 until the thread runs */
};

/* Units that follow each other. Each member begins with a run of its own, so that it reads weights
 * as they lie in memory, and goes on with those that others have not come to. */
struct run {
    _Alignas(64) atomic_ullong units; /* end << 32 | next */
};

struct team {
    struct crew *crew;
    unsigned n_threads;
    unsigned first_member; /* the leader's; its helpers follow */
    unsigned n_started;
    char name[12];
    struct team_thread *threads;
    atomic_bool stopping;
    atomic_bool in_pass;
    /* The phase at hand. fn and context are written before the runs' release stores, and read
     * only by those who took a unit from one, so never while they change. */
    team_unit_fn *fn;
    void *context;
    struct run runs[MAX_RUNS];
    _Alignas(64) atomic_uint remaining; /* units not done; its releases publish the units' writes */
    atomic_bool leader_sleeps;
};

static void futex_wait(const atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(const atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static bool claim_from(struct run *run, size_t *ret_unit)
{
    unsigned long long units = atomic_load_explicit(&run->units, memory_order_relaxed);
    do {
        if ((uint32_t)units >= units >> 32)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&run->units, &units, units + 1,
                                                    memory_order_acq_rel, memory_order_relaxed));
    *ret_unit = (uint32_t)units;
    return true;
}

static unsigned n_runs(const struct team *team)
{
    return team->crew->n_members < MAX_RUNS ? team->crew->n_members : MAX_RUNS;
}

/* The member's own run first: the leader's is the first. */
static bool claim(struct team *team, unsigned member, size_t *ret_unit)
{
    unsigned n = n_runs(team);
    unsigned first = (member + team->crew->n_members - team->first_member) % team->crew->n_members;
    for (unsigned i = 0; i < n; i++)
        if (claim_from(&team->runs[(first + i) % n], ret_unit))
            return true;
    return false;
}

/* Somebody with a claim on this thread has work for it. */
struct call_back {
    const struct team *team; /* its units go first; NULL: nobody's */
    const atomic_bool *done;
};

static bool is_called_back(const struct call_back *call)
{
    return call->team && (atomic_load_explicit(&call->team->remaining, memory_order_relaxed) ||
                          atomic_load_explicit(call->done, memory_order_relaxed));
}

/* Takes and runs units until the phase has none left, or the thread is called back after one. False
 * if there was none at all. */
static bool work(struct team *team, unsigned member, const struct call_back *call)
{
    size_t unit;
    unsigned n = 0;
    while ((!n || !is_called_back(call)) && claim(team, member, &unit)) {
        team->fn(team->context, member, unit);
        n++;
    }
    if (n && atomic_fetch_sub(&team->remaining, n) == n && atomic_load(&team->leader_sleeps))
        futex_wake_all(&team->remaining);
    return n > 0;
}

static void wake_crew(struct crew *crew)
{
    atomic_fetch_add(&crew->epoch, 1);
    if (atomic_load(&crew->n_sleeping))
        futex_wake_all(&crew->epoch);
}

static void wait_for_units(struct team *team)
{
    unsigned n;
    for (unsigned i = 0; team->crew->may_spin && i < SPINS_IN_PASS; i++) {
        if (atomic_load_explicit(&team->remaining, memory_order_acquire) == 0)
            return;
        pause_cpu();
    }
    /* Either the last worker sees leader_sleeps, or we see that nothing remains. */
    atomic_store(&team->leader_sleeps, true);
    while ((n = atomic_load(&team->remaining)) != 0)
        futex_wait(&team->remaining, n);
    atomic_store(&team->leader_sleeps, false);
}

void team_for(struct team *team, size_t n_units, team_unit_fn *fn, void *context)
{
    assert(n_units <= UINT32_MAX);
    if (n_units <= 1 || team->crew->n_members == 1) {
        for (size_t unit = 0; unit < n_units; unit++)
            fn(context, team->first_member, unit);
        return;
    }
    team->fn = fn;
    team->context = context;
    atomic_store_explicit(&team->remaining, (unsigned)n_units, memory_order_relaxed);
    unsigned n = n_runs(team);
    for (unsigned long long i = 0, begin = 0; i < n; i++) {
        unsigned long long end = (i + 1) * n_units / n;
        atomic_store_explicit(&team->runs[i].units, end << 32 | begin, memory_order_release);
        begin = end;
    }
    wake_crew(team->crew);
    work(team, team->first_member, &(struct call_back){0});
    wait_for_units(team);
}

void team_begin(struct team *team)
{
    atomic_store(&team->in_pass, true);
    wake_crew(team->crew);
}

void team_end(struct team *team)
{
    atomic_store(&team->in_pass, false);
}

/* Units of somebody: of the own team first. */
static bool help(struct team *own, unsigned member, const atomic_bool *done)
{
    struct crew *crew = own->crew;
    const struct call_back call = {own, done};
    unsigned n = atomic_load_explicit(&crew->n_teams, memory_order_acquire);
    if (work(own, member, &(struct call_back){0}))
        return true;
    for (unsigned i = 0; i < n; i++)
        if (crew->teams[i] != own && work(crew->teams[i], member, &call))
            return true;
    return false;
}

static bool any_in_pass(const struct crew *crew)
{
    unsigned n = atomic_load_explicit(&crew->n_teams, memory_order_acquire);
    for (unsigned i = 0; i < n; i++)
        if (atomic_load(&crew->teams[i]->in_pass))
            return true;
    return false;
}

/* Until *done: helps; within a pass of anybody stays awake; else sleeps. */
static void help_until(struct team *own, unsigned member, const atomic_bool *done)
{
    struct crew *crew = own->crew;
    unsigned idle = 0;

    while (!atomic_load(done)) {
        unsigned epoch = atomic_load(&crew->epoch);
        if (help(own, member, done)) {
            idle = 0;
            continue;
        }
        if (crew->may_spin && (idle < SPINS || (idle < SPINS_IN_PASS && any_in_pass(crew)))) {
            idle++;
            pause_cpu();
            continue;
        }
        if (atomic_load(done))
            return;
        atomic_fetch_add(&crew->n_sleeping, 1);
        futex_wait(&crew->epoch, epoch);
        atomic_fetch_sub(&crew->n_sleeping, 1);
        idle = 0;
    }
}

void team_wait(struct team *team, const atomic_bool *wanted)
{
    help_until(team, team->first_member, wanted);
}

void team_notify(struct team *team)
{
    wake_crew(team->crew);
}

static void *helper(void *arg)
{
    struct team_thread *self = arg;
    char name[16];

    snprintf(name, sizeof(name), "%s-%u", self->team->name,
             (self->member - self->team->first_member) % 1000);
    pthread_setname_np(pthread_self(), name);
    atomic_store(&self->tid, (int)syscall(SYS_gettid));
    help_until(self->team, self->member, &self->team->stopping);
    return NULL;
}

int crew_open(bool may_spin, struct crew **ret_crew, struct error *err)
{
    struct crew *crew = mem_alloc_aligned(sizeof(*crew));
    if (!crew)
        return error_memory(err, "thread crew", sizeof(*crew));
    memset(crew, 0, sizeof(*crew));
    crew->may_spin = may_spin;
    *ret_crew = crew;
    return 0;
}

void crew_close(struct crew *crew)
{
    mem_free(crew);
}

unsigned crew_size(const struct crew *crew)
{
    return crew->n_members;
}

struct crew *team_crew(struct team *team)
{
    return team->crew;
}

void team_give_way(struct team *team, int nice)
{
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice);
    for (unsigned i = 0; i < team->n_started; i++) {
        int tid;
        while ((tid = atomic_load(&team->threads[i].tid)) == 0)
            sched_yield();
        setpriority(PRIO_PROCESS, (id_t)tid, nice);
    }
}

static int start_helpers(struct team *team, struct error *err)
{
    team->threads = mem_calloc(team->n_threads, sizeof(*team->threads));
    if (!team->threads)
        return error_memory(err, "thread team", team->n_threads * sizeof(*team->threads));
    for (unsigned i = 0; i + 1 < team->n_threads; i++) {
        struct team_thread *t = &team->threads[i];
        *t = (struct team_thread){.team = team, .member = team->first_member + 1 + i};
        int rc = pthread_create(&t->thread, NULL, helper, t);
        if (rc)
            return error_set(err, ERROR_IO, "thread %u of %u of pool %s: %s", i + 2,
                             team->n_threads, team->name, strerror(rc));
        team->n_started++;
    }
    return 0;
}

int team_open(unsigned n_threads, const char *name, struct crew *crew, struct team **ret_team,
              struct error *err)
{
    struct crew *own = NULL;
    int rc = crew ? 0 : crew_open(!system_has_cpu_quota(), &own, err);
    if (rc)
        return rc;
    if (own) {
        own->is_private = true;
        crew = own;
    }
    struct team *team = mem_alloc_aligned(sizeof(*team));
    if (!team) {
        crew_close(own);
        return error_memory(err, "thread team", sizeof(*team));
    }
    memset(team, 0, sizeof(*team));
    unsigned n_teams = atomic_load(&crew->n_teams);
    assert(n_teams < CREW_MAX_TEAMS);
    team->crew = crew;
    team->n_threads = n_threads ? n_threads : 1;
    team->first_member = crew->n_members;
    snprintf(team->name, sizeof(team->name), "%s", name);
    crew->n_members += team->n_threads;
    crew->teams[n_teams] = team;
    atomic_store_explicit(&crew->n_teams, n_teams + 1, memory_order_release);
    rc = start_helpers(team, err);
    if (rc) {
        team_close(team);
        return rc;
    }
    *ret_team = team;
    return 0;
}

/* Helpers of other teams may still look at this one, so its memory must outlive their loops: the
 * teams of a crew are stopped first, all of them, and freed after. */
static void stop(struct team *team)
{
    atomic_store(&team->stopping, true);
    wake_crew(team->crew);
    for (unsigned i = 0; i < team->n_started; i++)
        pthread_join(team->threads[i].thread, NULL);
    team->n_started = 0;
}

void team_close(struct team *team)
{
    if (!team)
        return;
    struct crew *crew = team->crew;
    unsigned n = atomic_load(&crew->n_teams);
    for (unsigned i = 0; i < n; i++)
        stop(crew->teams[i]);
    unsigned kept = 0;
    for (unsigned i = 0; i < n; i++)
        if (crew->teams[i] != team)
            crew->teams[kept++] = crew->teams[i];
    atomic_store(&crew->n_teams, kept);
    if (crew->is_private)
        crew_close(crew);
    mem_free(team->threads);
    mem_free(team);
}
