/* main.c - runs the model that it is linked with, or that load.c maps: for verification and
 * benchmarks, on devices and in emulators.
 *
 *     runner [--input FILE] [--output FILE] [--variant NAME] [--trace FILE --plan FILE]
 *            [--warmup N] [--runs N] [--duration-ms N [--least N]] [--limit-ms N]
 *            [--threads N] [--cpus MASK] [--period-us N] [--window-ms N]
 *            [--profile] [--machine] [--root DIR]
 *
 * FILE holds tensors in the order of the model's inputs (or outputs), any number of samples
 * one after the other: the bytes "EFFCTNS1", a 64-bit count, then for each tensor its 64-bit
 * number of bytes and its data (native byte order). Without --input there is one
 * sample of small pseudo-random numbers. With --output every sample is run once. Then one
 * sample is run N times untimed (--warmup) and timed: --runs times at most, or for --duration-ms and
 * at least --least times, and never beyond --limit-ms but for the first time. The times go to stdout
 * as JSON. Where nothing is timed, an access behind the end of an input or output ends the program
 * with SIGSEGV.
 *
 * --trace stores tensors of every sample as they are after certain steps, which --plan names: a
 * 64-bit count, then five 64-bit numbers for each: step, where (0 arena, 1 output), index of the output,
 * offset and bytes; by ascending step. The file is like those of outputs.
 *
 * --cpus is a hexadecimal mask of the processors to run on. --period-us starts one
 * inference per period. --window-ms adds a time series with clocks and temperatures. --machine adds what
 * is known of them before and after; with no other work (--runs 0) that is all that happens.
 * --root is where sys/ and proc/ are, if not EFFC_ROOT says so.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runner.h"

typedef struct arguments {
    files paths;
    timing plan;
    long threads;
    uint64_t cpus;
    const char *variant;
    const char *root;
} arguments;

static uint64_t first_ns;

void die(const char *what, const char *detail)
{
    fprintf(stderr, "runner: %s: %s\n", what, detail);
    exit(1);
}

void check(effc_status status, const char *what)
{
    if (status != EFFC_OK)
        die(what, effc_status_message(status));
}

void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, EFFC_ALIGNMENT, bytes > 0 ? bytes : 1) != 0)
        die("allocate", "out of memory");
    return memory;
}

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void run_model(effc_model *model, const effc_tensor *inputs, const effc_tensor *outputs)
{
    static int started;
    uint64_t start = started ? 0 : now();
    check(effc_runner_entry.run(model, inputs, outputs), "run");
    if (!started)
        first_ns = now() - start;
    started = 1;
}

uint64_t first_run(void)
{
    return first_ns;
}

static long number(const char *flag, const char *text, long least)
{
    char *end = NULL;
    long value = text != NULL ? strtol(text, &end, 10) : 0;
    if (text == NULL || end == text || *end != '\0' || value < least)
        die(flag, "bad or missing number");
    return value;
}

static uint64_t cpu_mask(const char *flag, const char *text)
{
    char *end = NULL;
    uint64_t value = text != NULL ? strtoull(text, &end, 16) : 0;
    if (text == NULL || end == text || *end != '\0' || value == 0)
        die(flag, "bad or missing hexadecimal mask");
    return value;
}

static int parse_switch(arguments *args, const char *flag)
{
    if (strcmp(flag, "--profile") == 0)
        return args->plan.profile = 1;
    if (strcmp(flag, "--machine") == 0)
        return args->plan.machine = 1;
    return 0;
}

static int parse_text(arguments *args, const char *flag, const char *value)
{
    const struct {
        const char *flag, **value;
    } texts[] = {
        {"--input", &args->paths.input}, {"--output", &args->paths.output},
        {"--trace", &args->paths.trace}, {"--plan", &args->paths.plan},
        {"--variant", &args->variant},   {"--root", &args->root},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(flag, texts[i].flag) != 0)
            continue;
        if (value == NULL)
            die(flag, "missing value");
        *texts[i].value = value;
        return 1;
    }
    return 0;
}

static void parse_number(arguments *args, const char *flag, const char *value)
{
    timing *plan = &args->plan;
    if (strcmp(flag, "--runs") == 0)
        plan->runs = number(flag, value, 0);
    else if (strcmp(flag, "--warmup") == 0)
        plan->warmup = number(flag, value, 0);
    else if (strcmp(flag, "--least") == 0)
        plan->least = number(flag, value, 0);
    else if (strcmp(flag, "--duration-ms") == 0)
        plan->duration_ns = (uint64_t)number(flag, value, 1) * 1000000u;
    else if (strcmp(flag, "--limit-ms") == 0)
        plan->limit_ns = (uint64_t)number(flag, value, 1) * 1000000u;
    else if (strcmp(flag, "--period-us") == 0)
        plan->period_ns = (uint64_t)number(flag, value, 1) * 1000u;
    else if (strcmp(flag, "--window-ms") == 0)
        plan->window_ns = (uint64_t)number(flag, value, 1) * 1000000u;
    else if (strcmp(flag, "--threads") == 0)
        args->threads = number(flag, value, 1);
    else if (strcmp(flag, "--cpus") == 0)
        args->cpus = cpu_mask(flag, value);
    else
        die(flag, "unknown flag");
}

static arguments parse(int count, char **words)
{
    arguments args = {{0}, {0}, 1, 0, NULL, getenv("EFFC_ROOT")};
    for (int i = 1; i < count; i++) {
        const char *value = i + 1 < count ? words[i + 1] : NULL;
        if (parse_switch(&args, words[i]))
            continue;
        if (!parse_text(&args, words[i], value))
            parse_number(&args, words[i], value);
        i++;
    }
    const files *paths = &args.paths;
    const timing *plan = &args.plan;
    if ((paths->trace != NULL) != (paths->plan != NULL) || (paths->trace != NULL && plan->profile))
        die("--trace", "needs --plan, and no --profile");
    if (paths->trace != NULL &&
        (plan->runs > 0 || plan->duration_ns > 0 || plan->warmup > 0 || args.threads > 1))
        die("--trace", "times nothing, and has one thread: others would run ahead");
    return args;
}

/* All threads of the process run on the processors of the mask only; new ones inherit it. */
static void pin(uint64_t cpus)
{
    if (cpus == 0)
        return;
    uint64_t mask[1] = {cpus};
    if (sched_setaffinity(0, sizeof mask, (const cpu_set_t *)mask) != 0)
        die("--cpus", "no processor of the mask may be used");
}

static void run_all(const arguments *args)
{
    uint64_t start = now();
    const effc_model_info *info = effc_runner_entry.info();
    effc_options options = {0};
    options.threads = (int32_t)args->threads;
    options.variant = args->variant;
    pin(args->cpus);
    if (args->plan.profile)
        start_profile(&options);
    trace *stored = args->paths.trace != NULL ? start_trace(&args->paths, &options) : NULL;
    effc_model *model = NULL;
    check(effc_runner_entry.create(&options, &model), "create");
    uint64_t load = now() - start;

    int timed = args->plan.runs > 0 || args->plan.duration_ns > 0;
    int guarded = args->paths.output != NULL && !timed;
    effc_tensor *inputs = tensors_for(info->inputs, info->input_count, guarded);
    effc_tensor *outputs = tensors_for(info->outputs, info->output_count, guarded);
    run_samples(&args->paths, model, inputs, outputs, stored);
    run_timed(&args->plan, model, inputs, outputs);
    printf("\"load_ns\": %llu, \"first_ns\": %llu, ", (unsigned long long)load,
           (unsigned long long)first_run());
    printf("\"variant\": \"%s\", ", effc_runner_entry.variant(model));
    effc_runner_entry.destroy(model);
}

int main(int count, char **words)
{
    arguments args = parse(count, words);
    const timing *plan = &args.plan;
    int works = plan->runs > 0 || plan->duration_ns > 0 || plan->warmup > 0 ||
                args.paths.output != NULL || !plan->machine;
    printf("{");
    if (plan->machine) {
        find_machine(args.root != NULL ? args.root : "/");
        printf("\"before\": ");
        print_machine();
        printf(", ");
    }
    if (works)
        run_all(&args);
    printf("\"warmup\": %ld, \"threads\": %ld}\n", plan->warmup, args.threads);
    return 0;
}
