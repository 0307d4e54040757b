/* effc.h - the part of the C API that all models share.
 *
 * Each compiled model NAME comes with NAME.h, which declares
 *
 *     const effc_model_info *NAME_info(void);
 *     effc_status NAME_create(const effc_options *options, effc_model **model);
 *     effc_status NAME_run(effc_model *model, const effc_tensor *inputs,
 *                          const effc_tensor *outputs);
 *     const char *NAME_variant(const effc_model *model);
 *     void NAME_destroy(effc_model *model);
 *
 * Any number of models and of instances of one model may live in a process. Different
 * instances may run at the same time; one instance runs one inference at a time.
 * `run` allocates nothing and takes no locks.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_H
#define EFFC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a struct of this header changes. */
#define EFFC_ABI_VERSION 2

/* Alignment of the arena in bytes. */
#define EFFC_ALIGNMENT 64

/* No instance may have more threads. */
#define EFFC_MAX_THREADS 64

/* Bytes of an instance's own state within a caller-supplied arena. */
#define EFFC_STATE_BYTES(threads) ((size_t)512 + (size_t)64 * (size_t)(threads))

typedef enum effc_status {
    EFFC_OK = 0,
    EFFC_INVALID_ARGUMENT = 1, /* null pointer, negative or too large number */
    EFFC_WRONG_SIZE = 2,       /* tensor with another number of bytes than the model's */
    EFFC_MISALIGNED = 3,       /* tensor or arena not aligned */
    EFFC_OUT_OF_MEMORY = 4,
    EFFC_ARENA_TOO_SMALL = 5, /* caller-supplied arena, see NAME_ARENA_BYTES */
    EFFC_NO_THREADS = 6,      /* the system refused a thread, or built without them */
    EFFC_BAD_AFFINITY = 7,    /* no CPU of the mask may be used */
    EFFC_BUSY = 8,            /* another thread is running this instance */
    EFFC_WRONG_MODEL = 9,     /* instance of another model */
    EFFC_NO_VARIANT = 10,     /* no variant of this name, or not for this processor */
    EFFC_WRONG_WEIGHTS = 11   /* no weights, or those of another model; see effc_options */
} effc_status;

/* Element types; the numbers are those of ONNX. */
typedef enum effc_dtype {
    EFFC_FLOAT32 = 1,
    EFFC_UINT8 = 2,
    EFFC_INT8 = 3,
    EFFC_UINT16 = 4,
    EFFC_INT16 = 5,
    EFFC_INT32 = 6,
    EFFC_INT64 = 7,
    EFFC_BOOL = 9,
    EFFC_FLOAT16 = 10,
    EFFC_FLOAT64 = 11,
    EFFC_UINT32 = 12,
    EFFC_UINT64 = 13,
    EFFC_BFLOAT16 = 16
} effc_dtype;

/* Memory of one input or output: dense, row-major, aligned to its element.
 * Inputs are never written. Inputs and outputs must not overlap. */
typedef struct effc_tensor {
    void *data;
    size_t bytes;
} effc_tensor;

/* What the model expects of one input or output. */
typedef struct effc_tensor_info {
    const char *name;
    const int64_t *shape;
    size_t bytes;
    int32_t rank;
    effc_dtype dtype;
} effc_tensor_info;

/* One step of `run`. Several steps may belong to one layer. */
typedef struct effc_step_info {
    const char *layer;
    const char *nodes; /* ONNX nodes it computes, separated by '\n' */
} effc_step_info;

typedef struct effc_model_info {
    uint32_t abi_version; /* EFFC_ABI_VERSION of the library */
    const char *name;
    int32_t input_count;
    int32_t output_count;
    int32_t step_count;
    const effc_tensor_info *inputs;
    const effc_tensor_info *outputs;
    const effc_step_info *steps;
    size_t arena_bytes;   /* shared working memory */
    size_t scratch_bytes; /* further working memory of each thread */
    size_t weights_bytes; /* read-only */
    const char *const *variants; /* versions of the code, best first; the last is "base" */
    int32_t variant_count;
} effc_model_info;

/* Called on the thread that called `run`, after each step. */
typedef void (*effc_profile_fn)(void *user, int32_t step, uint64_t nanoseconds);

/* Zero-initialise, then set what you need. */
typedef struct effc_options {
    int32_t threads;         /* including the one that calls `run`; 0 means 1 */
    uint64_t affinity;       /* bit i: helper threads may use CPU i; 0 means any.
                                The thread that calls `run` is left as it is. */
    void *arena;             /* NAME_ARENA_BYTES(threads) bytes, aligned to EFFC_ALIGNMENT, which
                                must outlive the instance; nothing is allocated then. */
    size_t arena_bytes;      /* bytes at `arena` */
    effc_profile_fn profile; /* null: no profiling */
    void *profile_user;      /* passed to `profile` */
    const char *variant;     /* one of the info's; null: the best that this processor runs */
    const void *weights;     /* contents of the weights file, aligned to EFFC_ALIGNMENT (a mapped
                                file is), which must outlive the instance. Only for a library
                                without weights of its own, see NAME_WEIGHTS_FILE_BYTES. */
    size_t weights_bytes;    /* bytes at `weights` */
} effc_options;

typedef struct effc_model effc_model;

/* One English sentence for a status. */
static inline const char *effc_status_message(effc_status status)
{
    switch (status) {
    case EFFC_OK: return "no error";
    case EFFC_INVALID_ARGUMENT: return "an argument is null or out of range";
    case EFFC_WRONG_SIZE: return "a tensor has another size than the model expects";
    case EFFC_MISALIGNED: return "a tensor or the arena is not aligned";
    case EFFC_OUT_OF_MEMORY: return "out of memory";
    case EFFC_ARENA_TOO_SMALL: return "the supplied arena is too small";
    case EFFC_NO_THREADS: return "cannot start the requested threads";
    case EFFC_BAD_AFFINITY: return "no CPU of the affinity mask may be used";
    case EFFC_BUSY: return "the instance is running on another thread";
    case EFFC_WRONG_MODEL: return "the instance belongs to another model";
    case EFFC_NO_VARIANT: return "no such variant of the code, or not for this processor";
    case EFFC_WRONG_WEIGHTS: return "the weights are missing, or those of another model";
    }
    return "unknown status";
}

#ifdef __cplusplus
}
#endif
#endif
