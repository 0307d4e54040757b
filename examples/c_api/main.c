/* Runs the model `digits` through its C API, in three ways.
 *
 *     effc compile examples/digits/digits.onnx --target host -o digits
 *     lib=digits/lib/x86_64-linux-gnu
 *     cc -I digits/include examples/c_api/main.c -L $lib -ldigits -Wl,-rpath,$PWD/$lib -o main
 *
 * (On an Arm machine the folder is aarch64-linux-gnu. For Android link the library below
 * lib/arm64-v8a with your app's native code in the same way.)
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digits.h"

/* Memory for an instance with two threads, known when this file is compiled. */
_Alignas(EFFC_ALIGNMENT) static unsigned char arena[digits_ARENA_BYTES(2)];

static void check(effc_status status)
{
    if (status != EFFC_OK) {
        fprintf(stderr, "error: %s\n", effc_status_message(status));
        exit(1);
    }
}

static void print_step(void *user, int32_t step, uint64_t nanoseconds)
{
    const effc_model_info *info = user;
    printf("  %-40s %8.1f us\n", info->steps[step].layer, (double)nanoseconds / 1000.0);
}

static void print_tensor(const char *kind, const effc_tensor_info *tensor)
{
    printf("%s %s: [", kind, tensor->name);
    for (int32_t i = 0; i < tensor->rank; i++)
        printf("%s%lld", i > 0 ? ", " : "", (long long)tensor->shape[i]);
    printf("], %zu bytes\n", tensor->bytes);
}

/* One zeroed tensor for each of the model's inputs or outputs. */
static effc_tensor *make_tensors(const effc_tensor_info *infos, int32_t count)
{
    effc_tensor *tensors = calloc((size_t)count + 1, sizeof *tensors);
    for (int32_t i = 0; tensors != NULL && i < count; i++) {
        tensors[i].data = calloc(1, infos[i].bytes + 1);
        tensors[i].bytes = infos[i].bytes;
        if (tensors[i].data == NULL)
            return NULL;
    }
    return tensors;
}

int main(void)
{
    const effc_model_info *info = digits_info();
    printf("%s: %zu bytes of weights, %zu of working memory\n", info->name, info->weights_bytes,
           info->arena_bytes);
    for (int32_t i = 0; i < info->input_count; i++)
        print_tensor("input", &info->inputs[i]);
    for (int32_t i = 0; i < info->output_count; i++)
        print_tensor("output", &info->outputs[i]);

    effc_tensor *inputs = make_tensors(info->inputs, info->input_count);
    effc_tensor *outputs = make_tensors(info->outputs, info->output_count);
    if (inputs == NULL || outputs == NULL)
        check(EFFC_OUT_OF_MEMORY);

    /* 1. Defaults: one thread, memory allocated by create. */
    effc_model *model = NULL;
    check(digits_create(NULL, &model));
    check(digits_run(model, inputs, outputs));
    digits_destroy(model);

    /* 2. Two threads, our own memory, nothing allocated. */
    effc_options options = {0};
    options.threads = 2;
    options.arena = arena;
    options.arena_bytes = sizeof arena;
    check(digits_create(&options, &model));
    check(digits_run(model, inputs, outputs));
    digits_destroy(model);

    /* 3. Time per layer. */
    memset(&options, 0, sizeof options);
    options.profile = print_step;
    options.profile_user = (void *)info;
    check(digits_create(&options, &model));
    check(digits_run(model, inputs, outputs));
    digits_destroy(model);

    for (int32_t i = 0; i < info->input_count; i++)
        free(inputs[i].data);
    for (int32_t i = 0; i < info->output_count; i++)
        free(outputs[i].data);
    free(inputs);
    free(outputs);
    return 0;
}
