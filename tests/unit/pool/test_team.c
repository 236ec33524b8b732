/* Teams and crews: every unit runs once, before its phase ends, whoever runs it; lent threads come
 * back; scratch memory of a member is never used by two threads. */
#include "engine/base/mem.h"
#include "engine/base/team.h"
#include "tests/unit/check.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define MAX_UNITS 50
#define N_PHASES 1500
#define MAX_MEMBERS 16

struct phase {
    unsigned n_members;
    unsigned n_runs[MAX_UNITS];     /* each written by who runs the unit, read after the phase */
    unsigned *busy;                 /* [crew size], shared by the teams; plain on purpose */
    unsigned long *work_of_members; /* likewise */
};

static void unit(void *context, unsigned member, size_t i)
{
    struct phase *p = context;
    assert_true(member < p->n_members);
    p->busy[member]++;
    p->n_runs[i]++;
    p->work_of_members[member]++;
    p->busy[member]--;
    assert_int_equal(p->busy[member], 0);
}

struct leader {
    struct team *team;
    unsigned seed;
    unsigned *busy;
    unsigned long *work_of_members;
    unsigned long n_units;
    atomic_bool wanted;
    struct leader *other; /* is woken now and then; NULL: nobody */
    pthread_t thread;
};

static unsigned next(unsigned *seed, unsigned n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % n;
}

static void run_phase(struct leader *l, size_t n)
{
    struct phase p = {.n_members = crew_size(team_crew(l->team)),
                      .busy = l->busy,
                      .work_of_members = l->work_of_members};
    team_for(l->team, n, unit, &p);
    for (size_t i = 0; i < MAX_UNITS; i++)
        assert_int_equal(p.n_runs[i], i < n);
    l->n_units += n;
}

/* Passes of several phases; between passes it waits for the other leader's word, or not. */
static void *lead(void *arg)
{
    struct leader *l = arg;
    for (unsigned i = 0; i < N_PHASES;) {
        team_begin(l->team);
        for (unsigned k = 1 + next(&l->seed, 6); k; k--, i++)
            run_phase(l, next(&l->seed, 4) ? next(&l->seed, MAX_UNITS + 1) : next(&l->seed, 3));
        team_end(l->team);
        if (l->other) {
            atomic_store(&l->other->wanted, true);
            team_notify(l->team);
        } else if (next(&l->seed, 2)) {
            team_wait(l->team, &l->wanted);
            atomic_store(&l->wanted, false);
        }
        if (next(&l->seed, 3) == 0)
            run_phase(l, next(&l->seed, MAX_UNITS + 1)); /* outside a pass */
    }
    return NULL;
}

static void check_pair(unsigned n_first, unsigned n_second, bool may_spin)
{
    struct crew *crew = NULL;
    struct leader leaders[2] = {{.seed = n_first}, {.seed = n_second + 100}};
    unsigned busy[MAX_MEMBERS] = {0};
    unsigned long work[MAX_MEMBERS] = {0};
    struct error err;
    assert_int_equal(crew_open(may_spin, &crew, &err), 0);
    assert_int_equal(team_open(n_first, "first", crew, &leaders[0].team, &err), 0);
    assert_int_equal(team_open(n_second, "second", crew, &leaders[1].team, &err), 0);
    assert_int_equal(crew_size(crew), n_first + n_second);
    leaders[0].other = &leaders[1];
    for (int i = 0; i < 2; i++) {
        leaders[i].busy = busy;
        leaders[i].work_of_members = work;
        assert_int_equal(pthread_create(&leaders[i].thread, NULL, lead, &leaders[i]), 0);
    }
    pthread_join(leaders[0].thread, NULL);
    leaders[0].other = NULL;
    /* the second may wait for the first, which says no more */
    for (int rc = EBUSY; rc;) {
        atomic_store(&leaders[1].wanted, true);
        team_notify(leaders[0].team);
        rc = pthread_tryjoin_np(leaders[1].thread, NULL);
    }
    unsigned long total = 0;
    for (unsigned i = 0; i < n_first + n_second; i++)
        total += work[i];
    assert_int_equal(total, leaders[0].n_units + leaders[1].n_units);
    team_close(leaders[0].team);
    team_close(leaders[1].team);
    crew_close(crew);
}

static void two_teams_share_their_threads(void **state)
{
    for (int may_spin = 0; may_spin < 2; may_spin++) { /* without: as under a CPU quota */
        check_pair(1, 1, may_spin);
        check_pair(2, 2, may_spin);
        check_pair(1, 4, may_spin);
        check_pair(3, 1, may_spin);
    }
}

static void team_alone_runs_every_unit_once(void **state)
{
    for (unsigned n = 0; n <= 4; n++) {
        struct leader l = {.seed = n};
        unsigned busy[MAX_MEMBERS] = {0};
        unsigned long work[MAX_MEMBERS] = {0};
        struct error err;
        assert_int_equal(team_open(n, "alone", NULL, &l.team, &err), 0);
        assert_int_equal(crew_size(team_crew(l.team)), n ? n : 1);
        l.busy = busy;
        l.work_of_members = work;
        for (size_t i = 0; i < 300; i++)
            run_phase(&l, i % (MAX_UNITS + 1));
        team_close(l.team);
    }
}

/* A leader without work runs units of the other team: of two threads in all, both get some. */
static void *wait_idle(void *arg)
{
    struct leader *l = arg;
    team_wait(l->team, &l->wanted);
    return NULL;
}

static void idle_leader_lends_itself(void **state)
{
    struct crew *crew = NULL;
    struct leader idle = {0}, busy_one = {0};
    unsigned busy[MAX_MEMBERS] = {0};
    unsigned long work[MAX_MEMBERS] = {0};
    struct error err;
    assert_int_equal(crew_open(true, &crew, &err), 0);
    assert_int_equal(team_open(1, "idle", crew, &idle.team, &err), 0);
    assert_int_equal(team_open(1, "busy", crew, &busy_one.team, &err), 0);
    busy_one.busy = busy;
    busy_one.work_of_members = work;
    assert_int_equal(pthread_create(&idle.thread, NULL, wait_idle, &idle), 0);
    team_begin(busy_one.team);
    for (unsigned long i = 0; work[0] == 0 && i < 10000000; i++)
        run_phase(&busy_one, MAX_UNITS);
    team_end(busy_one.team);
    assert_true(work[0] > 0);
    assert_true(work[1] > 0);
    atomic_store(&idle.wanted, true);
    team_notify(busy_one.team);
    pthread_join(idle.thread, NULL);
    team_close(idle.team);
    team_close(busy_one.team);
    crew_close(crew);
}

static void failed_allocation_opens_no_team(void **state)
{
    struct team *team = NULL;
    struct error err = {0};
    unsigned long k = 0;
    int rc;
    do {
        mem_fail_at(++k);
        rc = team_open(3, "test", NULL, &team, &err);
        assert_true(rc == 0 || (rc == -ERROR_MEMORY && !team));
    } while (rc);
    mem_fail_at(0);
    assert_true(k > 2);
    team_close(team);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(team_alone_runs_every_unit_once),
        cmocka_unit_test(two_teams_share_their_threads),
        cmocka_unit_test(idle_leader_lends_itself),
        cmocka_unit_test(failed_allocation_opens_no_team),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
