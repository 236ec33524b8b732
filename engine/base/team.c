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

/* Pauses before an idle thread sleeps (about 20 us), and before one that waits within a pass offers
 * its CPU to others. */
#define SPINS 600

struct crew {
    bool may_spin;
    bool is_private;
    unsigned n_members;
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

struct team {
    struct crew *crew;
    unsigned n_threads;
    unsigned first_member; /* the leader's; its helpers follow */
    unsigned n_started;
    char name[12];
    struct team_thread *threads;
    atomic_bool stopping;
    atomic_bool in_pass;
    /* The phase at hand. fn and context are written before the ticket's release store, and read
     * only by those who took a unit from it, so never while they change. */
    team_unit_fn *fn;
    void *context;
    _Alignas(64) atomic_ullong ticket;  /* n_units << 32 | next unit */
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

static bool claim(struct team *team, size_t *ret_unit)
{
    unsigned long long ticket = atomic_load_explicit(&team->ticket, memory_order_relaxed);
    do {
        if ((uint32_t)ticket >= ticket >> 32)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&team->ticket, &ticket, ticket + 1,
                                                    memory_order_acq_rel, memory_order_relaxed));
    *ret_unit = (uint32_t)ticket;
    return true;
}

/* Takes and runs units until the phase has none left. False if it had none at all. */
static bool work(struct team *team, unsigned member, bool only_one)
{
    size_t unit;
    bool any = false;
    while (claim(team, &unit)) {
        any = true;
        team->fn(team->context, member, unit);
        if (atomic_fetch_sub(&team->remaining, 1) == 1 && atomic_load(&team->leader_sleeps))
            futex_wake_all(&team->remaining);
        if (only_one)
            break;
    }
    return any;
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
    for (unsigned i = 0; team->crew->may_spin && i < SPINS; i++) {
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
    atomic_store_explicit(&team->ticket, (unsigned long long)n_units << 32, memory_order_release);
    if (!team->crew->may_spin)
        wake_crew(team->crew);
    work(team, team->first_member, false);
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

/* One unit for somebody: the own team first. */
static bool help(struct team *own, unsigned member)
{
    struct crew *crew = own->crew;
    unsigned n = atomic_load_explicit(&crew->n_teams, memory_order_acquire);
    if (work(own, member, true))
        return true;
    for (unsigned i = 0; i < n; i++)
        if (crew->teams[i] != own && work(crew->teams[i], member, true))
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
        if (help(own, member)) {
            idle = 0;
            continue;
        }
        if (crew->may_spin && idle++ < SPINS) {
            pause_cpu();
            continue;
        }
        if (crew->may_spin && any_in_pass(crew)) {
            sched_yield();
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
