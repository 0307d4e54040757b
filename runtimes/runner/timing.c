/* timing.c - repeats an inference and prints how long each took.
 *
 * Everything but the inference happens outside of the measured interval. At most KEPT times are
 * kept; of more, a uniform sample (algorithm R; Vitter, "Random sampling with a reservoir", ACM
 * TOMS 11, 1985), so that memory and output stay bounded however long a run is.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "runner.h"

enum {
    KEPT = 1 << 16,     /* times that are printed */
    PROFILED = 1 << 10, /* runs whose steps are kept */
    CPUS = 1024,
};

typedef struct record {
    uint64_t start; /* since the first run */
    uint64_t took;
} record;

typedef struct state {
    record *kept;
    uint64_t *window; /* times of the running window, KEPT at most */
    long in_window;
    uint64_t window_start;
    long windows;
    long runs;
    long late;    /* paced: runs that ended after the next should have begun */
    long skipped; /* paced: periods without a run, because of late ones */
    long on_cpu[CPUS];
    uint64_t random;
} state;

static uint64_t *steps; /* PROFILED rows, one column per step */
static long profiled_run = -1;

static void on_step(void *user, int32_t step, uint64_t nanoseconds)
{
    const effc_model_info *info = user;
    if (profiled_run >= 0 && profiled_run < PROFILED)
        steps[(size_t)profiled_run * (size_t)info->step_count + (size_t)step] = nanoseconds;
}

void start_profile(effc_options *options)
{
    const effc_model_info *info = effc_runner_entry.info();
    steps = allocate(sizeof *steps * PROFILED * (size_t)info->step_count);
    options->profile = on_step;
    options->profile_user = (void *)info;
}

static int ascending(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

/* The value below which a share of per_mille / 1000 lies; `sorted` is. */
static uint64_t quantile(const uint64_t *sorted, long count, long per_mille)
{
    return sorted[(count - 1) * per_mille / 1000];
}

static void keep(state *s, record r)
{
    if (s->runs < KEPT) {
        s->kept[s->runs] = r;
        return;
    }
    s->random = s->random * 6364136223846793005u + 1442695040888963407u;
    uint64_t place = (s->random >> 16) % (uint64_t)(s->runs + 1);
    if (place < KEPT)
        s->kept[place] = r;
}

static void close_window(state *s)
{
    uint64_t sum = 0;
    if (s->in_window == 0)
        return;
    qsort(s->window, (size_t)s->in_window, sizeof *s->window, ascending);
    for (long i = 0; i < s->in_window; i++)
        sum += s->window[i];
    printf("%s{\"start_ns\": %llu, \"runs\": %ld, \"mean_ns\": %llu, \"quantiles_ns\": [",
           s->windows > 0 ? ", " : "", (unsigned long long)s->window_start, s->in_window,
           (unsigned long long)(sum / (uint64_t)s->in_window));
    static const long shares[] = {0, 100, 500, 900, 1000};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++)
        printf("%s%llu", i > 0 ? ", " : "",
               (unsigned long long)quantile(s->window, s->in_window, shares[i]));
    printf("], ");
    print_sensors();
    printf("}");
    s->windows++;
    s->in_window = 0;
}

static void add_to_window(const timing *plan, state *s, record r)
{
    if (s->in_window == 0)
        s->window_start = r.start;
    s->window[s->in_window++] = r.took;
    if (r.start + r.took - s->window_start >= plan->window_ns || s->in_window == KEPT)
        close_window(s);
}

static void sleep_until(uint64_t when)
{
    struct timespec t = {(time_t)(when / 1000000000u), (long)(when % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0) {
    }
}

/* Waits for the next period; periods that passed during a run are left out, as a camera's frames
 * would be. */
static void wait_for_period(const timing *plan, state *s, uint64_t begin)
{
    uint64_t periods = (now() - begin) / plan->period_ns;
    uint64_t due = (uint64_t)(s->runs + s->skipped);
    if (periods >= due && s->runs > 0) {
        s->late++;
        s->skipped += (long)(periods + 1 - due);
        due = periods + 1;
    }
    sleep_until(begin + due * plan->period_ns);
}

static int is_over(const timing *plan, const state *s, uint64_t begin)
{
    uint64_t spent = now() - begin;
    if (plan->runs > 0 && s->runs >= plan->runs)
        return 1;
    if (plan->limit_ns > 0 && s->runs > 0 && spent >= plan->limit_ns)
        return 1;
    if (plan->duration_ns > 0)
        return s->runs >= plan->least && spent >= plan->duration_ns;
    return plan->runs == 0;
}

static void print_list(const char *name, const record *records, long count, int starts)
{
    printf("\"%s\": [", name);
    for (long i = 0; i < count; i++)
        printf("%s%llu", i > 0 ? ", " : "",
               (unsigned long long)(starts ? records[i].start : records[i].took));
    printf("], ");
}

static void print_cpus_used(const state *s)
{
    int first = 1;
    printf("\"ran_on\": {");
    for (int cpu = 0; cpu < CPUS; cpu++) {
        if (s->on_cpu[cpu] == 0)
            continue;
        printf("%s\"%d\": %ld", first ? "" : ", ", cpu, s->on_cpu[cpu]);
        first = 0;
    }
    printf("}, ");
}

/* Median time of each step over the profiled runs. */
static void print_steps(long runs)
{
    const effc_model_info *info = effc_runner_entry.info();
    long rows = runs < PROFILED ? runs : PROFILED;
    uint64_t *column = allocate(sizeof *column * PROFILED);
    printf("\"steps_ns\": [");
    for (int32_t step = 0; step < info->step_count && rows > 0; step++) {
        for (long row = 0; row < rows; row++)
            column[row] = steps[(size_t)row * (size_t)info->step_count + (size_t)step];
        qsort(column, (size_t)rows, sizeof *column, ascending);
        printf("%s%llu", step > 0 ? ", " : "", (unsigned long long)quantile(column, rows, 500));
    }
    printf("], ");
}

static uint64_t used_cpu_time(const struct rusage *usage)
{
    return ((uint64_t)usage->ru_utime.tv_sec + (uint64_t)usage->ru_stime.tv_sec) * 1000000000u +
           ((uint64_t)usage->ru_utime.tv_usec + (uint64_t)usage->ru_stime.tv_usec) * 1000u;
}

void run_timed(const timing *plan, effc_model *model, const effc_tensor *inputs,
               const effc_tensor *outputs)
{
    static state s;
    struct rusage before, after;
    s.kept = allocate(sizeof *s.kept * KEPT);
    s.window = allocate(sizeof *s.window * KEPT);
    s.random = 1;
    for (long i = 0; i < plan->warmup; i++) {
        uint64_t next = now() + plan->period_ns;
        run_model(model, inputs, outputs);
        if (plan->period_ns > 0)
            sleep_until(next); /* the clock settles at what this pace needs */
    }
    unsigned long long peak = process_bytes("VmHWM:"); /* without what is kept of the runs */

    printf("\"windows\": [");
    getrusage(RUSAGE_SELF, &before);
    uint64_t begin = now();
    while (!is_over(plan, &s, begin)) {
        if (plan->period_ns > 0)
            wait_for_period(plan, &s, begin);
        profiled_run = s.runs;
        uint64_t start = now();
        run_model(model, inputs, outputs);
        record r = {start - begin, now() - start};
        int cpu = sched_getcpu();
        if (cpu >= 0 && cpu < CPUS)
            s.on_cpu[cpu]++;
        keep(&s, r);
        s.runs++;
        if (plan->window_ns > 0)
            add_to_window(plan, &s, r);
    }
    uint64_t wall = now() - begin;
    getrusage(RUSAGE_SELF, &after);
    close_window(&s);
    printf("], ");
    if (plan->machine) {
        printf("\"after\": ");
        print_machine();
        printf(", ");
    }
    if (plan->warmup == 0)
        peak = process_bytes("VmHWM:");
    long count = s.runs < KEPT ? s.runs : KEPT;
    printf("\"peak_bytes\": %llu, ", peak);
    printf("\"runs\": %ld, \"late\": %ld, \"skipped\": %ld, ", s.runs, s.late, s.skipped);
    printf("\"period_ns\": %llu, ", (unsigned long long)plan->period_ns);
    printf("\"preempted\": %ld, \"wall_ns\": %llu, \"cpu_ns\": %llu, ",
           after.ru_nivcsw - before.ru_nivcsw, (unsigned long long)wall,
           (unsigned long long)(used_cpu_time(&after) - used_cpu_time(&before)));
    print_cpus_used(&s);
    if (plan->profile)
        print_steps(s.runs);
    print_list("starts_ns", s.kept, count, 1);
    print_list("times_ns", s.kept, count, 0);
}
