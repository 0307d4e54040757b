/* Two models, four instances on four threads at once, each with its own pool; one uses memory of
 * the caller, with canaries around it. Every result must equal that of a single-threaded run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "first.h"
#include "second.h"

enum { FLOATS = first_INPUT_0_BYTES / 4, CANARY = 64 };

_Static_assert(first_INPUT_0_BYTES == second_INPUT_0_BYTES, "the driver serves both models");

typedef struct model_api {
    effc_status (*create)(const effc_options *, effc_model **);
    effc_status (*run)(effc_model *, const effc_tensor *, const effc_tensor *);
    void (*destroy)(effc_model *);
} model_api;

typedef struct job {
    model_api api;
    int32_t threads;
    int own_arena;
    int repeats;
    int failures;
    float first_result;
} job;

static void require(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "failed: %s\n", what);
        exit(1);
    }
}

static void *aligned(size_t bytes)
{
    size_t whole = (bytes + EFFC_ALIGNMENT - 1) / EFFC_ALIGNMENT * EFFC_ALIGNMENT;
    void *memory = aligned_alloc(EFFC_ALIGNMENT, whole);
    require(memory != NULL, "allocate");
    return memory;
}

static void infer(const model_api *api, effc_model *model, const float *x, float *out, float *sum)
{
    effc_tensor in = {(void *)x, FLOATS * sizeof(float)};
    effc_tensor outs[2] = {{out, FLOATS * sizeof(float)}, {sum, sizeof(float)}};
    require(api->run(model, &in, outs) == EFFC_OK, "run");
}

static void *drive(void *argument)
{
    job *j = argument;
    effc_options options = {0};
    options.threads = j->threads;
    size_t bytes = first_ARENA_BYTES(j->threads);
    unsigned char *memory = NULL;
    if (j->own_arena) {
        memory = aligned(bytes + 2 * CANARY);
        memset(memory, 0xA5, bytes + 2 * CANARY);
        options.arena = memory + CANARY;
        options.arena_bytes = bytes;
    }
    effc_model *model = NULL;
    effc_model *single = NULL;
    require(j->api.create(&options, &model) == EFFC_OK, "create");
    require(j->api.create(NULL, &single) == EFFC_OK, "create with defaults");
    float *x = aligned(FLOATS * sizeof(float));
    float *out = aligned(FLOATS * sizeof(float)), *expected = aligned(FLOATS * sizeof(float));
    for (int r = 0; r < j->repeats; r++) {
        for (int i = 0; i < FLOATS; i++)
            x[i] = (float)((i * 7 + r) % 11) / 11.0f - 0.5f;
        float sum = -1, expected_sum = -2;
        infer(&j->api, model, x, out, &sum);
        infer(&j->api, single, x, expected, &expected_sum);
        if (sum != expected_sum || memcmp(out, expected, FLOATS * sizeof(float)) != 0)
            j->failures++;
        if (r == 0)
            j->first_result = sum;
    }
    j->api.destroy(model);
    j->api.destroy(single);
    if (j->own_arena)
        for (int i = 0; i < CANARY; i++)
            require(memory[i] == 0xA5 && memory[CANARY + bytes + (size_t)i] == 0xA5, "canary");
    free(memory);
    free(x);
    free(out);
    free(expected);
    return NULL;
}

int main(int count, char **words)
{
    int repeats = count > 1 ? atoi(words[1]) : 100;
    int32_t most = count > 2 ? atoi(words[2]) : 4;
    model_api a = {first_create, first_run, first_destroy};
    model_api b = {second_create, second_run, second_destroy};
    job jobs[4] = {
        {a, 1, 0, repeats, 0, 0},
        {a, most < 3 ? most : 3, 1, repeats, 0, 0},
        {b, most, 0, repeats, 0, 0},
        {b, most < 2 ? most : 2, 1, repeats, 0, 0},
    };
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        require(pthread_create(&threads[i], NULL, drive, &jobs[i]) == 0, "thread");
    int failures = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        failures += jobs[i].failures;
    }
    require(failures == 0, "results");
    require(jobs[0].first_result == jobs[3].first_result, "both models compute the same");
    return 0;
}
