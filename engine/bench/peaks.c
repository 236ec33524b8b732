/* Runs each loop on all threads at once and adds up their rates. See peaks.h. */
#include "engine/bench/peaks.h"

#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/bench/loops.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define N_RUNS 5
#define RUN_NS 20000000u              /* of one run of a loop, at least */
#define RAM_BYTES ((size_t)128 << 20) /* that a thread reads: beyond any share of a cache */
#define READ_STEP 256                 /* loop_read's */

struct job {
    const struct loop *loop; /* NULL: read */
    size_t read_bytes;       /* of a thread's own memory */
};

/* Everybody waits for everybody, so that all run at once. */
enum gate { GATE_CLOSED, GATE_OPEN, GATE_GIVEN_UP };

struct worker {
    struct job job;
    pthread_t thread;
    atomic_uint *n_ready;
    atomic_int *gate; /* enum gate */
    double rate;      /* a second */
    bool failed;      /* no memory */
};

/* How often the job runs in RUN_NS: doubled until it takes so long. */
static double run_rate(const struct job *job, const void *memory)
{
    for (size_t n = 1;; n *= 2) {
        uint64_t begin = system_now_ns();
        if (job->loop)
            job->loop->run(n * 1000);
        else
            for (size_t i = 0; i < n; i++)
                loop_read(memory, job->read_bytes);
        uint64_t ns = system_now_ns() - begin;
        if (ns >= RUN_NS) {
            double amount = job->loop ? job->loop->ops * 1000 : (double)job->read_bytes;
            return amount * (double)n / ((double)ns / 1e9);
        }
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    void *memory = NULL;
    if (!w->job.loop) {
        memory = mem_alloc_aligned(w->job.read_bytes);
        if (memory)
            memset(memory, 1, w->job.read_bytes); /* by the thread that reads: near its CPU */
        else
            w->failed = true;
    }
    atomic_fetch_add(w->n_ready, 1);
    while (atomic_load(w->gate) == GATE_CLOSED)
        sched_yield();
    if (!w->failed && atomic_load(w->gate) == GATE_OPEN)
        w->rate = run_rate(&w->job, memory);
    mem_free(memory);
    return NULL;
}

static int run_workers(struct worker *workers, unsigned n, struct error *err)
{
    unsigned n_started = 0;
    int rc = 0;
    while (n_started < n && rc == 0) {
        rc = pthread_create(&workers[n_started].thread, NULL, worker_main, &workers[n_started]);
        n_started += rc == 0;
    }
    while (atomic_load(workers[0].n_ready) < n_started)
        sched_yield();
    atomic_store(workers[0].gate, rc ? GATE_GIVEN_UP : GATE_OPEN);
    for (unsigned i = 0; i < n_started; i++)
        pthread_join(workers[i].thread, NULL);
    if (rc)
        return error_set(err, ERROR_IO, "thread %u of %u: %s", n_started + 1, n, strerror(rc));
    return 0;
}

/* All threads' rates together, the best of N_RUNS. */
static int measure(const struct job *job, unsigned n_threads, double *ret_rate, struct error *err)
{
    double best = 0;
    _cleanup_mem_ struct worker *workers = mem_calloc(n_threads, sizeof(*workers));
    if (!workers)
        return error_memory(err, "bench threads", n_threads * sizeof(*workers));
    for (int run = 0; run < N_RUNS; run++) {
        atomic_uint n_ready = 0;
        atomic_int gate = GATE_CLOSED;
        double rate = 0;
        for (unsigned i = 0; i < n_threads; i++)
            workers[i] = (struct worker){.job = *job, .n_ready = &n_ready, .gate = &gate};
        int rc = run_workers(workers, n_threads, err);
        if (rc)
            return rc;
        for (unsigned i = 0; i < n_threads; i++) {
            if (workers[i].failed)
                return error_memory(err, "memory to read", job->read_bytes);
            rate += workers[i].rate;
        }
        best = rate > best ? rate : best;
    }
    *ret_rate = best;
    return 0;
}

/* A number at the beginning of a file such as "32768K"; 0 when there is none. */
static size_t read_size(const char *path)
{
    size_t value = 0;
    char unit = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    int n = fscanf(f, "%zu%c", &value, &unit);
    fclose(f);
    return n < 1 ? 0 : unit == 'K' ? value << 10 : unit == 'M' ? value << 20 : value;
}

/* How many CPUs a list such as "0-7,64-71" names. */
static unsigned count_listed(const char *path)
{
    unsigned n = 0;
    unsigned first;
    unsigned last;
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    while (fscanf(f, "%u", &first) == 1) {
        last = first;
        int c = fgetc(f);
        if (c == '-' && fscanf(f, "%u", &last) == 1)
            c = fgetc(f);
        n += last >= first ? last - first + 1 : 0;
        if (c != ',')
            break;
    }
    fclose(f);
    return n;
}

/* L3 that n_threads threads reach: all of one if they share it, several if it has fewer CPUs. */
static size_t l3_size(unsigned n_threads)
{
    char path[96];
    for (int i = 0; i < 8; i++) {
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        if (read_size(path) != 3)
            continue;
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        size_t bytes = read_size(path);
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/shared_cpu_list",
                 i);
        unsigned sharers = count_listed(path);
        return sharers && sharers < n_threads ? bytes * (n_threads / sharers) : bytes;
    }
    return 0;
}

static struct peak *peak_of(struct peaks *peaks, enum loop_kind kind)
{
    struct peak *const of_kind[N_LOOP_KINDS] = {
        [LOOP_INT8] = &peaks->int8, [LOOP_INT4] = &peaks->int4, [LOOP_INT16] = &peaks->int16,
        [LOOP_FP32] = &peaks->fp32, [LOOP_BF16] = &peaks->bf16,
    };
    return of_kind[kind];
}

static int measure_arithmetic(struct peaks *peaks, struct error *err)
{
    for (size_t i = 0; i < N_LOOPS; i++) {
        const struct loop *loop = &LOOPS[i];
        double rate;
        if (!loop->available())
            continue;
        int rc = measure(&(struct job){.loop = loop}, peaks->n_threads, &rate, err);
        if (rc)
            return rc;
        struct peak *peak = peak_of(peaks, loop->kind);
        if (rate / 1e9 > peak->gops)
            *peak = (struct peak){rate / 1e9, loop->with};
    }
    if (peaks->int8.gops > peaks->int4.gops) /* a nibble is a byte too */
        peaks->int4 = peaks->int8;
    return 0;
}

static int measure_reading(struct peaks *peaks, struct error *err)
{
    double rate;
    size_t most = system_memory_bytes() / 4 / peaks->n_threads;
    size_t bytes = (RAM_BYTES < most ? RAM_BYTES : most) / READ_STEP * READ_STEP;
    int rc = measure(&(struct job){.read_bytes = bytes}, peaks->n_threads, &rate, err);
    if (rc)
        return rc;
    peaks->ram_gbs = rate / 1e9;
    peaks->l3_bytes = l3_size(peaks->n_threads);
    /* half of it: the rest of the machine uses it too */
    bytes = peaks->l3_bytes / 2 / peaks->n_threads / READ_STEP * READ_STEP;
    if (!bytes)
        return 0;
    rc = measure(&(struct job){.read_bytes = bytes}, peaks->n_threads, &rate, err);
    if (rc)
        return rc;
    peaks->l3_gbs = rate / 1e9;
    return 0;
}

int peaks_measure(unsigned n_threads, struct peaks *ret_peaks, struct error *err)
{
    struct peaks peaks = {.n_threads = n_threads ? n_threads : 1};
    int rc = measure_arithmetic(&peaks, err);
    if (rc == 0)
        rc = measure_reading(&peaks, err);
    if (rc == 0)
        *ret_peaks = peaks;
    return rc;
}
