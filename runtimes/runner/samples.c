/* samples.c - inputs from a file, outputs and inner tensors into files.
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runner.h"

#define MAGIC "EFFCTNS1"

typedef struct piece {
    uint64_t step, where, index, offset, bytes;
} piece;

struct trace {
    FILE *file;
    uint64_t count;
    piece *pieces;
    uint64_t next; /* piece of the running inference */
    const char *arena;
    const effc_tensor *outputs;
};

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

effc_tensor *tensors_for(const effc_tensor_info *infos, int32_t count, int guarded)
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

trace *start_trace(const files *paths, effc_options *options)
{
    const effc_model_info *info = effc_runner_entry.info();
    size_t line = EFFC_ALIGNMENT;
    size_t bytes = EFFC_STATE_BYTES(1) + (info->arena_bytes + line - 1) / line * line +
                   (info->scratch_bytes + line - 1) / line * line;
    trace *t = allocate(sizeof *t);
    read_plan(paths->plan, t);
    t->file = fopen(paths->trace, "wb");
    if (t->file == NULL)
        die(paths->trace, "cannot open");
    options->arena = allocate(bytes);
    options->arena_bytes = bytes;
    options->profile = store_pieces;
    options->profile_user = t;
    t->arena = (const char *)options->arena + EFFC_STATE_BYTES(1);
    return t;
}

static void write_header(FILE *file, const char *path, uint64_t tensors)
{
    if (fwrite(MAGIC, 1, strlen(MAGIC), file) != strlen(MAGIC) ||
        fwrite(&tensors, 1, sizeof tensors, file) != sizeof tensors)
        die(path, "cannot write");
}

/* Opens a file of inputs; how many samples it holds. */
static uint64_t open_samples(const char *path, FILE **file)
{
    const effc_model_info *info = effc_runner_entry.info();
    char magic[8];
    *file = fopen(path, "rb");
    if (*file == NULL)
        die(path, "cannot open");
    read_bytes(*file, magic, sizeof magic);
    uint64_t tensors = read_u64(*file);
    if (memcmp(magic, MAGIC, sizeof magic) != 0 || info->input_count == 0 ||
        tensors % (uint64_t)info->input_count != 0)
        die(path, "not a file of samples for this model");
    return tensors / (uint64_t)info->input_count;
}

void run_samples(const files *paths, effc_model *model, effc_tensor *inputs, effc_tensor *outputs,
                 trace *stored)
{
    const effc_model_info *info = effc_runner_entry.info();
    FILE *in = NULL, *out = NULL;
    uint64_t samples = paths->input != NULL ? open_samples(paths->input, &in) : 1;
    if (paths->output != NULL) {
        out = fopen(paths->output, "wb");
        if (out == NULL)
            die(paths->output, "cannot open");
        write_header(out, paths->output, samples * (uint64_t)info->output_count);
    }
    if (stored != NULL) {
        stored->outputs = outputs;
        write_header(stored->file, paths->trace, samples * stored->count);
    }
    if (in == NULL)
        fill_sample(info->inputs, inputs, info->input_count);
    for (uint64_t i = 0; i < samples; i++) {
        if (in != NULL)
            read_sample(in, inputs, info->input_count);
        if (out == NULL)
            break; /* only the first sample is wanted, for timing */
        if (stored != NULL)
            stored->next = 0;
        run_model(model, inputs, outputs);
        write_sample(out, outputs, info->output_count);
    }
    if (in != NULL)
        fclose(in);
    if (out != NULL && fclose(out) != 0)
        die(paths->output, "cannot write");
    if (stored != NULL && fclose(stored->file) != 0)
        die(paths->trace, "cannot write");
}
