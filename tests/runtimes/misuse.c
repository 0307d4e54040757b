/* Every status that misuse of the C API can give, and that the instance survives it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "first.h"
#include "second.h"

#define EXPECT(expression, status)                                                            \
    do {                                                                                      \
        effc_status got = (expression);                                                       \
        if (got != (status)) {                                                                \
            fprintf(stderr, "line %d: %s\n", __LINE__, effc_status_message(got));             \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

static effc_model *reentered;
static const effc_tensor *reentered_in, *reentered_out;
static int calls;

static void hook(void *user, int32_t step, uint64_t nanoseconds)
{
    (void)nanoseconds;
    if (step != calls++ || user != &calls)
        exit(2);
    EXPECT(first_run(reentered, reentered_in, reentered_out), EFFC_BUSY);
}

int main(void)
{
    _Alignas(64) static unsigned char arena[first_ARENA_BYTES(2) + 64];
    _Alignas(64) static float x[first_INPUT_0_BYTES / 4 + 1], y[first_OUTPUT_0_BYTES / 4], s[1];
    effc_options options = {0};
    effc_model *model = (effc_model *)&options;

    EXPECT(first_create(NULL, NULL), EFFC_INVALID_ARGUMENT);
    options.threads = -1;
    EXPECT(first_create(&options, &model), EFFC_INVALID_ARGUMENT);
    if (model != NULL)
        return 3;
    options.threads = EFFC_MAX_THREADS + 1;
    EXPECT(first_create(&options, &model), EFFC_INVALID_ARGUMENT);
    options.threads = 2;
    options.arena = arena;
    options.arena_bytes = first_ARENA_BYTES(2) - 1;
    EXPECT(first_create(&options, &model), EFFC_ARENA_TOO_SMALL);
    options.arena = arena + 8;
    options.arena_bytes = first_ARENA_BYTES(2);
    EXPECT(first_create(&options, &model), EFFC_MISALIGNED);
    options.arena = arena;
    options.affinity = (uint64_t)1 << 63;
    EXPECT(first_create(&options, &model), EFFC_BAD_AFFINITY);
    options.affinity = 1;
    EXPECT(first_create(&options, &model), EFFC_OK);

    effc_tensor in = {x, first_INPUT_0_BYTES};
    effc_tensor out[2] = {{y, first_OUTPUT_0_BYTES}, {s, first_OUTPUT_1_BYTES}};
    EXPECT(first_run(model, &in, out), EFFC_OK);
    EXPECT(first_run(NULL, &in, out), EFFC_INVALID_ARGUMENT);
    EXPECT(first_run(model, NULL, out), EFFC_INVALID_ARGUMENT);
    EXPECT(first_run(model, &in, NULL), EFFC_INVALID_ARGUMENT);
    EXPECT(second_run(model, &in, out), EFFC_WRONG_MODEL);
    second_destroy(model); /* not its own: ignored */
    in.bytes--;
    EXPECT(first_run(model, &in, out), EFFC_WRONG_SIZE);
    in.bytes++;
    in.data = (unsigned char *)x + 2;
    EXPECT(first_run(model, &in, out), EFFC_MISALIGNED);
    in.data = x + 1; /* the element's own alignment is enough */
    EXPECT(first_run(model, &in, out), EFFC_OK);
    in.data = NULL;
    EXPECT(first_run(model, &in, out), EFFC_INVALID_ARGUMENT);
    in.data = x;
    first_destroy(model);
    first_destroy(NULL);

    options.affinity = 0;
    options.variant = "dotprod";
    model = NULL;
    EXPECT(first_create(&options, &model), EFFC_NO_VARIANT);
    options.variant = first_info()->variants[first_info()->variant_count - 1];
    if (model != NULL || first_variant(NULL) != NULL || strcmp(options.variant, "base") != 0)
        return 6;
    options.profile = hook;
    options.profile_user = &calls;
    EXPECT(first_create(&options, &model), EFFC_OK);
    reentered = model;
    reentered_in = &in;
    reentered_out = out;
    EXPECT(first_run(model, &in, out), EFFC_OK);
    if (calls != first_info()->step_count)
        return 4;
    if (strcmp(first_variant(model), "base") != 0 || second_variant(model) != NULL)
        return 7;
    first_destroy(model);
    if (strcmp(effc_status_message(EFFC_OK), effc_status_message(EFFC_BUSY)) == 0)
        return 5;
    return 0;
}
