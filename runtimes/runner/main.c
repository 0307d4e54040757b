/* main.c - runs the model that it is linked with; for emulators and benchmarks.
 *
 *     runner [--input FILE] [--output FILE] [--warmup N] [--runs N] [--threads N] [--profile]
 *            [--variant NAME] [--trace FILE --plan FILE]
 *
 * FILE holds tensors in the order of the model's inputs (or outputs), any number of samples
 * one after the other: the bytes "EFFCTNS1", a 64-bit count, then for each tensor its 64-bit
 * number of bytes and its data (native byte order). Without --input there is one
 * sample of small pseudo-random numbers. With --output every sample is run once. Then one
 * sample is run N times untimed (--warmup) and N times timed (--runs); the times go to stdout
 * as JSON. Where nothing is timed, an access behind the end of an input or output ends the
 * program with SIGSEGV.
 *
 * --trace stores tensors of every sample as they are after certain steps, which --plan names: a
 * 64-bit count, then five 64-bit numbers for each: step, where (0 arena, 1 output), index of the output,
 * offset and bytes; by ascending step. The file is like those of outputs.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "runner.h"

#define MAGIC "EFFCTNS1"

typedef struct arguments {
    const char *input;
    const char *output;
    long runs;
    long warmup;
    long threads;
    const char *variant;
    const char *trace;
    const char *plan;
    int profile;
} arguments;

typedef struct profile {
    uint64_t *nanoseconds; /* per step, summed over the timed runs */
} profile;

typedef struct piece {
    uint64_t step, where, index, offset, bytes;
} piece;

typedef struct trace {
    FILE *file;
    uint64_t count;
    piece *pieces;
    uint64_t next; /* piece of the running inference */
    const char *arena;
    const effc_tensor *outputs;
} trace;

static void die(const char *what, const char *detail)
{
    fprintf(stderr, "runner: %s: %s\n", what, detail);
    exit(1);
}

static void check(effc_status status, const char *what)
{
    if (status != EFFC_OK)
        die(what, effc_status_message(status));
}

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, EFFC_ALIGNMENT, bytes > 0 ? bytes : 1) != 0)
        die("allocate", "out of memory");
    return memory;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static long number(const char *flag, const char *text, long least)
{
    char *end = NULL;
    long value = text != NULL ? strtol(text, &end, 10) : 0;
    if (text == NULL || end == text || *end != '\0' || value < least)
        die(flag, "bad or missing number");
    return value;
}

static arguments parse(int count, char **words)
{
    arguments args = {NULL, NULL, 0, 0, 1, NULL, NULL, NULL, 0};
    for (int i = 1; i < count; i++) {
        const char *flag = words[i];
        const char *value = i + 1 < count ? words[i + 1] : NULL;
        if (strcmp(flag, "--profile") == 0) {
            args.profile = 1;
            continue;
        }
        if (strcmp(flag, "--input") == 0)
            args.input = value;
        else if (strcmp(flag, "--output") == 0)
            args.output = value;
        else if (strcmp(flag, "--runs") == 0)
            args.runs = number(flag, value, 0);
        else if (strcmp(flag, "--warmup") == 0)
            args.warmup = number(flag, value, 0);
        else if (strcmp(flag, "--variant") == 0)
            args.variant = value;
        else if (strcmp(flag, "--trace") == 0)
            args.trace = value;
        else if (strcmp(flag, "--plan") == 0)
            args.plan = value;
        else if (strcmp(flag, "--threads") == 0)
            args.threads = number(flag, value, 1);
        else
            die(flag, "unknown flag");
        if (value == NULL)
            die(flag, "missing value");
        i++;
    }
    if ((args.trace != NULL) != (args.plan != NULL) || (args.trace != NULL && args.profile))
        die("--trace", "needs --plan, and no --profile");
    if (args.trace != NULL && (args.runs > 0 || args.warmup > 0 || args.threads > 1))
        die("--trace", "times nothing, and has one thread: others would run ahead");
    return args;
}

static void read_bytes(FILE *file, void *to, size_t bytes)
{
    if (fread(to, 1, bytes, file) != bytes)
        die("input", "truncated");
}

static uint64_t read_u64(FILE *file)
{
    uint64_t value = 0;
    read_bytes(file, &value, sizeof value);
    return value;
}

/* Memory whose last byte is followed by an inaccessible page. */
static void *allocate_guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (bytes + page - 1) / page * page;
    char *memory = mmap(NULL, room + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || (room > 0 && mprotect(memory, room, PROT_READ | PROT_WRITE) != 0))
        die("allocate", "out of memory");
    return memory + room - bytes;
}

static effc_tensor *tensors_for(const effc_tensor_info *infos, int32_t count, int guarded)
{
    effc_tensor *tensors = allocate(sizeof *tensors * (size_t)count);
    for (int32_t i = 0; i < count; i++) {
        tensors[i].bytes = infos[i].bytes;
        tensors[i].data = guarded ? allocate_guarded(infos[i].bytes) : allocate(infos[i].bytes);
    }
    return tensors;
}

static void read_sample(FILE *file, effc_tensor *tensors, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        if (read_u64(file) != tensors[i].bytes)
            die("input", "tensor of another size than the model's");
        read_bytes(file, tensors[i].data, tensors[i].bytes);
    }
}

static void write_sample(FILE *file, const effc_tensor *tensors, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        uint64_t bytes = tensors[i].bytes;
        if (fwrite(&bytes, 1, sizeof bytes, file) != sizeof bytes ||
            fwrite(tensors[i].data, 1, bytes, file) != bytes)
            die("output", "cannot write");
    }
}

/* Floats in [-1, 1), everything else zero: indices and lengths must stay valid. */
static void fill_sample(const effc_tensor_info *infos, effc_tensor *tensors, int32_t count)
{
    uint32_t state = 1;
    for (int32_t i = 0; i < count; i++) {
        memset(tensors[i].data, 0, tensors[i].bytes);
        if (infos[i].dtype != EFFC_FLOAT32)
            continue;
        float *values = tensors[i].data;
        for (size_t k = 0; k < tensors[i].bytes / sizeof *values; k++) {
            state = state * 1664525u + 1013904223u;
            values[k] = (float)(state >> 8) / 8388608.0f - 1.0f;
        }
    }
}

static void on_step(void *user, int32_t step, uint64_t nanoseconds)
{
    profile *p = user;
    p->nanoseconds[step] += nanoseconds;
}

static void store_pieces(void *user, int32_t step, uint64_t nanoseconds)
{
    trace *t = user;
    (void)nanoseconds;
    for (; t->next < t->count && t->pieces[t->next].step == (uint64_t)step; t->next++) {
        const piece *p = &t->pieces[t->next];
        const char *base = p->where == 0 ? t->arena : t->outputs[p->index].data;
        if (fwrite(&p->bytes, 1, sizeof p->bytes, t->file) != sizeof p->bytes ||
            fwrite(base + p->offset, 1, p->bytes, t->file) != p->bytes)
            die("trace", "cannot write");
    }
}

static void read_plan(const char *path, trace *t)
{
    const effc_model_info *info = effc_runner_entry.info();
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        die(path, "cannot open");
    t->count = read_u64(file);
    t->pieces = allocate(sizeof *t->pieces * t->count);
    read_bytes(file, t->pieces, sizeof *t->pieces * t->count);
    fclose(file);
    for (uint64_t i = 0; i < t->count; i++) {
        const piece *p = &t->pieces[i];
        int known = p->where == 0 || (p->where == 1 && p->index < (uint64_t)info->output_count);
        uint64_t limit = !known          ? 0
                         : p->where == 0 ? info->arena_bytes
                                         : info->outputs[p->index].bytes;
        if (!known || p->step >= (uint64_t)info->step_count || p->offset > limit ||
            p->bytes > limit - p->offset || (i > 0 && p->step < p[-1].step))
            die(path, "not a plan for this model");
    }
}

/* Lets the model run in memory that is known here, and its tensors be stored. */
static void start_trace(const arguments *args, effc_options *options, trace *t)
{
    const effc_model_info *info = effc_runner_entry.info();
    size_t line = EFFC_ALIGNMENT;
    size_t bytes = EFFC_STATE_BYTES(1) + (info->arena_bytes + line - 1) / line * line +
                   (info->scratch_bytes + line - 1) / line * line;
    read_plan(args->plan, t);
    t->file = fopen(args->trace, "wb");
    if (t->file == NULL)
        die(args->trace, "cannot open");
    options->arena = allocate(bytes);
    options->arena_bytes = bytes;
    options->profile = store_pieces;
    options->profile_user = t;
    t->arena = (const char *)options->arena + EFFC_STATE_BYTES(1);
}

static void write_header(FILE *file, const char *path, uint64_t tensors)
{
    if (fwrite(MAGIC, 1, strlen(MAGIC), file) != strlen(MAGIC) ||
        fwrite(&tensors, 1, sizeof tensors, file) != sizeof tensors)
        die(path, "cannot write");
}

static void run_samples(const arguments *args, effc_model *model, effc_tensor *inputs,
                        effc_tensor *outputs, trace *t)
{
    const effc_model_info *info = effc_runner_entry.info();
    uint64_t samples = 1;
    FILE *in = NULL, *out = NULL;
    char magic[8];
    if (args->input != NULL) {
        in = fopen(args->input, "rb");
        if (in == NULL)
            die(args->input, "cannot open");
        read_bytes(in, magic, sizeof magic);
        uint64_t tensors = read_u64(in);
        if (memcmp(magic, MAGIC, sizeof magic) != 0 || info->input_count == 0 ||
            tensors % (uint64_t)info->input_count != 0)
            die(args->input, "not a file of samples for this model");
        samples = tensors / (uint64_t)info->input_count;
    }
    if (args->output != NULL) {
        out = fopen(args->output, "wb");
        if (out == NULL)
            die(args->output, "cannot open");
        write_header(out, args->output, samples * (uint64_t)info->output_count);
    }
    if (t->file != NULL)
        write_header(t->file, args->trace, samples * t->count);
    if (in == NULL)
        fill_sample(info->inputs, inputs, info->input_count);
    for (uint64_t i = 0; i < samples; i++) {
        if (in != NULL)
            read_sample(in, inputs, info->input_count);
        if (out == NULL)
            break; /* only the first sample is wanted, for timing */
        t->next = 0;
        check(effc_runner_entry.run(model, inputs, outputs), "run");
        write_sample(out, outputs, info->output_count);
    }
    if (in != NULL)
        fclose(in);
    if (out != NULL && fclose(out) != 0)
        die(args->output, "cannot write");
    if (t->file != NULL && fclose(t->file) != 0)
        die(args->trace, "cannot write");
}

static void print_times(const arguments *args, const effc_model *model, const uint64_t *times,
                        const profile *p)
{
    const effc_model_info *info = effc_runner_entry.info();
    printf("{\"runs\": %ld, \"warmup\": %ld, \"threads\": %ld, \"variant\": \"%s\", \"times_ns\": [",
           args->runs, args->warmup, args->threads, effc_runner_entry.variant(model));
    for (long i = 0; i < args->runs; i++)
        printf("%s%llu", i > 0 ? ", " : "", (unsigned long long)times[i]);
    printf("]");
    if (args->profile) {
        printf(", \"steps_ns\": [");
        for (int32_t i = 0; i < info->step_count; i++)
            printf("%s%llu", i > 0 ? ", " : "", (unsigned long long)p->nanoseconds[i]);
        printf("]");
    }
    printf("}\n");
}

int main(int count, char **words)
{
    arguments args = parse(count, words);
    const effc_model_info *info = effc_runner_entry.info();
    size_t steps = sizeof(uint64_t) * (size_t)info->step_count;
    profile totals = {allocate(steps)};
    effc_options options = {0};
    options.threads = (int32_t)args.threads;
    options.variant = args.variant;
    if (args.profile) {
        options.profile = on_step;
        options.profile_user = &totals;
    }
    trace stored = {0};
    if (args.trace != NULL)
        start_trace(&args, &options, &stored);
    effc_model *model = NULL;
    check(effc_runner_entry.create(&options, &model), "create");
    int guarded = args.output != NULL && args.runs == 0;
    effc_tensor *inputs = tensors_for(info->inputs, info->input_count, guarded);
    effc_tensor *outputs = tensors_for(info->outputs, info->output_count, guarded);
    stored.outputs = outputs;
    run_samples(&args, model, inputs, outputs, &stored);

    for (long i = 0; i < args.warmup; i++)
        check(effc_runner_entry.run(model, inputs, outputs), "run");
    memset(totals.nanoseconds, 0, steps);
    uint64_t *times = allocate(sizeof *times * (size_t)args.runs);
    for (long i = 0; i < args.runs; i++) {
        uint64_t start = now();
        check(effc_runner_entry.run(model, inputs, outputs), "run");
        times[i] = now() - start;
    }
    print_times(&args, model, times, &totals);
    effc_runner_entry.destroy(model);
    return 0;
}
