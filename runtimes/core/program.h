/* program.h - between the generated code of a model and the runtime. Not installed.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EFFC_PROGRAM_H
#define EFFC_PROGRAM_H

#include "effc.h"

/* The memory of one `run`. */
typedef struct effc_context {
    const effc_tensor *inputs;
    const effc_tensor *outputs;
    uint8_t *arena;
    const uint8_t *weights;
} effc_context;

/* Computes the parallel units [begin, end) of one step. */
typedef void (*effc_step_fn)(const effc_context *context, uint8_t *scratch, int32_t begin,
                             int32_t end);

typedef struct effc_step {
    effc_step_fn compute;
    const uint32_t *bounds; /* cumulative work, extent + 1 entries, or null: equal units */
    int32_t extent;
} effc_step;

/* A weights file begins with "EFFCWTS1", its size without this header (64 bits, little-endian), the
 * SHA-256 of what follows, and zeros. */
#define EFFC_WEIGHTS_HEADER 64

/* The steps with functions for one kind of processor. */
typedef struct effc_variant {
    const effc_step *steps;
    uint32_t needs; /* processor.h */
} effc_variant;

typedef struct effc_program {
    const effc_model_info *info;
    const effc_variant *variants; /* as in the info */
    const uint8_t *weights; /* null: they come from a file */
    const uint8_t *weights_header; /* first EFFC_WEIGHTS_HEADER bytes of that file */
    uint32_t (*features)(void); /* null: no variant needs any */
} effc_program;

effc_status effc_create(const effc_program *program, const effc_options *options,
                        effc_model **model);
effc_status effc_run(const effc_program *program, effc_model *model, const effc_tensor *inputs,
                     const effc_tensor *outputs);
const char *effc_variant_of(const effc_program *program, const effc_model *model);
void effc_destroy(const effc_program *program, effc_model *model);

#endif
