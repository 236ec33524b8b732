/* A team of threads. See team.h. */
#include "engine/base/team.h"

#include "engine/base/mem.h"
#include "engine/base/system.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About 20 us of pauses: longer than a balanced phase's imbalance, shorter than a time slice. */
#define SPINS 600

struct team_thread {
    struct team *team;
    unsigned member;
    pthread_t thread;
};

struct team {
    unsigned n_threads;
    unsigned n_started; /* threads to join */
    unsigned spins;
    int nice;
    char name[12];
    bool stopping; /* written before the barrier that starts a run, read after it */
    team_fn *fn;   /* likewise */
    void *context; /* likewise */
    struct team_thread *threads;
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint generation; /* counts barriers; its release store publishes all writes
                                            made before the barrier, waiters acquire it */
    atomic_uint n_sleeping;
    _Alignas(64) atomic_size_t next_unit;
};

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void wait_for_next(struct team *team, unsigned generation)
{
    for (unsigned i = 0; i < team->spins; i++) {
        if (atomic_load_explicit(&team->generation, memory_order_acquire) != generation)
            return;
        pause_cpu();
    }
    /* Sequentially consistent on both sides: either the last arriver sees us sleeping, or we see
     * its new generation before the kernel puts us to sleep. */
    atomic_fetch_add(&team->n_sleeping, 1);
    while (atomic_load(&team->generation) == generation)
        futex_wait(&team->generation, generation);
    atomic_fetch_sub(&team->n_sleeping, 1);
}

void team_barrier(struct team *team)
{
    unsigned generation = atomic_load_explicit(&team->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 < team->n_threads) {
        wait_for_next(team, generation);
        return;
    }
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&team->next_unit, 0, memory_order_relaxed);
    atomic_store(&team->generation, generation + 1);
    if (atomic_load(&team->n_sleeping))
        futex_wake_all(&team->generation);
}

bool team_claim(struct team *team, size_t n_units, size_t *ret_unit)
{
    size_t unit = atomic_fetch_add_explicit(&team->next_unit, 1, memory_order_relaxed);
    if (unit >= n_units)
        return false;
    *ret_unit = unit;
    return true;
}

static void *worker(void *arg)
{
    struct team_thread *self = arg;
    struct team *team = self->team;
    char name[16];

    snprintf(name, sizeof(name), "%s-%u", team->name, self->member % 1000);
    pthread_setname_np(pthread_self(), name);
    if (team->nice)
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), team->nice);
    for (;;) {
        team_barrier(team);
        if (team->stopping)
            return NULL;
        team->fn(team, self->member, team->context);
        team_barrier(team);
    }
}

void team_run(struct team *team, team_fn *fn, void *context)
{
    team->fn = fn;
    team->context = context;
    team_barrier(team);
    fn(team, 0, context);
    team_barrier(team);
}

int team_open(unsigned n_threads, const char *name, int nice, struct team **ret_team,
              struct error *err)
{
    struct team *team = mem_alloc_aligned(sizeof(*team));
    if (!team)
        return error_memory(err, "thread team", sizeof(*team));
    memset(team, 0, sizeof(*team));
    team->n_threads = n_threads ? n_threads : 1;
    team->nice = nice;
    team->spins = system_has_cpu_quota() || n_threads > system_cpu_count() ? 0 : SPINS;
    snprintf(team->name, sizeof(team->name), "%s", name);
    team->threads = mem_calloc(team->n_threads, sizeof(*team->threads));
    if (!team->threads) {
        mem_free(team);
        return error_memory(err, "thread team", n_threads * sizeof(*team->threads));
    }
    for (unsigned i = 1; i < team->n_threads; i++) {
        team->threads[i] = (struct team_thread){.team = team, .member = i};
        int rc = pthread_create(&team->threads[i].thread, NULL, worker, &team->threads[i]);
        if (rc) {
            unsigned wanted = team->n_threads;
            team->n_threads = i; /* those that run wait at a barrier of this many */
            team_close(team);
            return error_set(err, ERROR_IO, "thread %u of %u of pool %s: %s", i + 1, wanted, name,
                             strerror(rc));
        }
        team->n_started++;
    }
    *ret_team = team;
    return 0;
}

void team_close(struct team *team)
{
    if (!team)
        return;
    team->stopping = true;
    team_barrier(team);
    for (unsigned i = 1; i <= team->n_started; i++)
        pthread_join(team->threads[i].thread, NULL);
    mem_free(team->threads);
    mem_free(team);
}

unsigned team_size(const struct team *team)
{
    return team->n_threads;
}
