/* model.c - instances of a model: memory, argument checks, the step loop.
 * SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"
#include "program.h"

struct effc_model {
    const effc_program *program;
    const effc_step *steps;
    const char *variant;
    effc_context context;
    uint8_t *scratch; /* one slice per worker */
    size_t scratch_stride;
    effc_profile_fn profile;
    void *profile_user;
    void *owned; /* memory to free, or null when the caller supplied the arena */
    effc_pool pool;
    atomic_flag busy;
    effc_worker workers[];
};

_Static_assert(sizeof(effc_model) <= EFFC_STATE_BYTES(0), "EFFC_STATE_BYTES is too small");
_Static_assert(sizeof(effc_worker) <= EFFC_STATE_BYTES(1) - EFFC_STATE_BYTES(0),
               "EFFC_STATE_BYTES is too small");
_Static_assert(EFFC_STATE_BYTES(0) % EFFC_ALIGNMENT == 0, "the arena must stay aligned");

static size_t round_up(size_t bytes)
{
    return (bytes + EFFC_ALIGNMENT - 1) / EFFC_ALIGNMENT * EFFC_ALIGNMENT;
}

/* Index of the variant of a name, or of the best one; -1 if this processor has none. */
static int32_t choose_variant(const effc_program *program, const char *name)
{
    const effc_model_info *info = program->info;
    uint32_t features = program->features != NULL ? program->features() : 0;
    for (int32_t i = 0; i < info->variant_count; i++)
        if ((program->variants[i].needs & ~features) == 0 &&
            (name == NULL || strcmp(name, info->variants[i]) == 0))
            return i;
    return -1;
}

/* The weights of an instance, or null and why not. */
static const uint8_t *find_weights(const effc_program *program, const effc_options *options,
                                   effc_status *status)
{
    const uint8_t *file = options->weights;
    if (program->weights != NULL)
        return program->weights;
    if ((uintptr_t)file % EFFC_ALIGNMENT != 0)
        *status = EFFC_MISALIGNED;
    else if (file == NULL ||
             options->weights_bytes != EFFC_WEIGHTS_HEADER + program->info->weights_bytes ||
             memcmp(file, program->weights_header, EFFC_WEIGHTS_HEADER) != 0)
        *status = EFFC_WRONG_WEIGHTS;
    else
        return file + EFFC_WEIGHTS_HEADER;
    return NULL;
}

effc_status effc_create(const effc_program *program, const effc_options *options,
                        effc_model **model)
{
    static const effc_options defaults = {0};
    if (model == NULL)
        return EFFC_INVALID_ARGUMENT;
    *model = NULL;
    if (options == NULL)
        options = &defaults;
    int32_t threads = options->threads == 0 ? 1 : options->threads;
    if (threads < 1 || threads > EFFC_MAX_THREADS)
        return EFFC_INVALID_ARGUMENT;
    int32_t variant = choose_variant(program, options->variant);
    if (variant < 0)
        return EFFC_NO_VARIANT;

    effc_status status = EFFC_OK;
    const uint8_t *weights = find_weights(program, options, &status);
    if (weights == NULL)
        return status;

    const effc_model_info *info = program->info;
    size_t stride = round_up(info->scratch_bytes);
    size_t state = EFFC_STATE_BYTES(threads);
    size_t arena = round_up(info->arena_bytes);
    size_t total = state + arena + stride * (size_t)threads;
    void *memory = options->arena;
    void *owned = NULL;
    if (memory != NULL) {
        if ((uintptr_t)memory % EFFC_ALIGNMENT != 0)
            return EFFC_MISALIGNED;
        if (options->arena_bytes < total)
            return EFFC_ARENA_TOO_SMALL;
    } else {
        if (posix_memalign(&memory, EFFC_ALIGNMENT, total) != 0)
            return EFFC_OUT_OF_MEMORY;
        owned = memory;
    }

    effc_model *made = memory;
    made->program = program;
    made->steps = program->variants[variant].steps;
    made->variant = info->variants[variant];
    made->context.inputs = NULL;
    made->context.outputs = NULL;
    made->context.arena = (uint8_t *)memory + state;
    made->context.weights = weights;
    made->scratch = made->context.arena + arena;
    made->scratch_stride = stride;
    made->profile = options->profile;
    made->profile_user = options->profile_user;
    made->owned = owned;
    atomic_flag_clear(&made->busy);
    status = effc_pool_start(&made->pool, made->workers, threads, options->affinity);
    if (status != EFFC_OK) {
        free(owned);
        return status;
    }
    *model = made;
    return EFFC_OK;
}

const char *effc_variant_of(const effc_program *program, const effc_model *model)
{
    return model != NULL && model->program == program ? model->variant : NULL;
}

void effc_destroy(const effc_program *program, effc_model *model)
{
    if (model == NULL || model->program != program)
        return;
    effc_pool_stop(&model->pool);
    model->program = NULL;
    free(model->owned);
}

/* First unit of a worker; the first unit of worker `threads` is the extent. Unit 0 always
 * belongs to worker 0, so steps of one unit need no other worker. */
static int32_t first_unit(const effc_step *step, int32_t worker, int32_t threads)
{
    if (step->bounds == NULL)
        return (int32_t)(((int64_t)step->extent * worker + threads - 1) / threads);
    uint64_t goal = (uint64_t)step->bounds[step->extent] * (uint32_t)worker;
    int32_t low = 0, high = step->extent;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((uint64_t)step->bounds[middle] * (uint32_t)threads < goal)
            low = middle + 1;
        else
            high = middle;
    }
    return worker == threads ? step->extent : low;
}

static uint64_t nanoseconds(void)
{
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What one worker does for one `run`. */
static void run_steps(void *argument, int32_t worker)
{
    effc_model *model = argument;
    const effc_step *steps = model->steps;
    int32_t count = model->program->info->step_count;
    int32_t threads = model->pool.threads;
    uint8_t *scratch = model->scratch + model->scratch_stride * (size_t)worker;
    uint64_t before = 0;
    if (worker == 0 && model->profile != NULL)
        before = nanoseconds();
    for (int32_t i = 0; i < count; i++) {
        const effc_step *step = &steps[i];
        int32_t begin = first_unit(step, worker, threads);
        int32_t end = first_unit(step, worker + 1, threads);
        if (begin < end)
            step->compute(&model->context, scratch, begin, end);
        if (model->profile != NULL) {
            effc_pool_barrier(&model->pool);
            if (worker == 0) {
                uint64_t after = nanoseconds();
                model->profile(model->profile_user, i, after - before);
                before = nanoseconds();
            }
        } else if (i + 1 < count && (step->extent > 1 || step[1].extent > 1)) {
            /* Steps of one unit run on worker 0, in order, without waiting between them. */
            effc_pool_barrier(&model->pool);
        }
    }
}

static size_t element_alignment(effc_dtype dtype)
{
    switch (dtype) {
    case EFFC_UINT8:
    case EFFC_INT8:
    case EFFC_BOOL: return 1;
    case EFFC_UINT16:
    case EFFC_INT16:
    case EFFC_FLOAT16:
    case EFFC_BFLOAT16: return 2;
    case EFFC_INT64:
    case EFFC_UINT64:
    case EFFC_FLOAT64: return 8;
    default: return 4;
    }
}

static effc_status check_tensors(const effc_tensor *tensors, const effc_tensor_info *infos,
                                 int32_t count)
{
    if (tensors == NULL && count > 0)
        return EFFC_INVALID_ARGUMENT;
    for (int32_t i = 0; i < count; i++) {
        if (tensors[i].bytes != infos[i].bytes)
            return EFFC_WRONG_SIZE;
        if (tensors[i].data == NULL && tensors[i].bytes > 0)
            return EFFC_INVALID_ARGUMENT;
        if ((uintptr_t)tensors[i].data % element_alignment(infos[i].dtype) != 0)
            return EFFC_MISALIGNED;
    }
    return EFFC_OK;
}

effc_status effc_run(const effc_program *program, effc_model *model, const effc_tensor *inputs,
                     const effc_tensor *outputs)
{
    const effc_model_info *info = program->info;
    if (model == NULL)
        return EFFC_INVALID_ARGUMENT;
    if (model->program != program)
        return EFFC_WRONG_MODEL;
    effc_status status = check_tensors(inputs, info->inputs, info->input_count);
    if (status == EFFC_OK)
        status = check_tensors(outputs, info->outputs, info->output_count);
    if (status != EFFC_OK)
        return status;
    if (atomic_flag_test_and_set_explicit(&model->busy, memory_order_acquire))
        return EFFC_BUSY;
    model->context.inputs = inputs;
    model->context.outputs = outputs;
    effc_pool_run(&model->pool, run_steps, model);
    atomic_flag_clear_explicit(&model->busy, memory_order_release);
    return EFFC_OK;
}
