/* runner.h - how main.c finds the model it is linked with.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EFFC_RUNNER_H
#define EFFC_RUNNER_H

#include "effc.h"

typedef struct effc_entry {
    const effc_model_info *(*info)(void);
    effc_status (*create)(const effc_options *, effc_model **);
    effc_status (*run)(effc_model *, const effc_tensor *, const effc_tensor *);
    const char *(*variant)(const effc_model *);
    void (*destroy)(effc_model *);
} effc_entry;

extern const effc_entry effc_runner_entry;

#endif
