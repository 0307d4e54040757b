/* runner.h - between the parts of the benchmark program and the model it runs.
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

/* main.c */

void die(const char *what, const char *detail);
void check(effc_status status, const char *what);
void *allocate(size_t bytes); /* aligned, not touched: costs memory only where it is used */
uint64_t now(void);           /* nanoseconds of a clock that never jumps */

/* One inference. The first one of the process is timed, see first_run. */
void run_model(effc_model *model, const effc_tensor *inputs, const effc_tensor *outputs);
uint64_t first_run(void);

/* samples.c */

typedef struct files {
    const char *input; /* null: one made-up sample */
    const char *output;
    const char *trace;
    const char *plan;
} files;

typedef struct trace trace;

/* Lets the model run in memory that is known here, and its tensors be stored. */
trace *start_trace(const files *paths, effc_options *options);
effc_tensor *tensors_for(const effc_tensor_info *infos, int32_t count, int guarded);
void run_samples(const files *paths, effc_model *model, effc_tensor *inputs, effc_tensor *outputs,
                 trace *stored);

/* timing.c */

typedef struct timing {
    long warmup;
    long runs;            /* most timed inferences; 0: no limit */
    uint64_t duration_ns; /* repeat for so long; 0: for the number of runs */
    long least;           /* so many runs, even if they take longer than the duration */
    uint64_t limit_ns;    /* no further run starts later, whatever is missing; 0: no limit */
    uint64_t period_ns;   /* one inference per period; 0: back to back */
    uint64_t window_ns;   /* a row of the time series for each; 0: no series */
    int profile;          /* also the time of each step */
    int machine;          /* also what is known of the machine afterwards */
} timing;

/* Makes the model report its steps. */
void start_profile(effc_options *options);
/* Runs and prints members of a JSON object, each with a comma behind it. */
void run_timed(const timing *plan, effc_model *model, const effc_tensor *inputs,
               const effc_tensor *outputs);

/* machine.c */

/* Looks for processors and sensors below a folder that holds sys/ and proc/. */
void find_machine(const char *root);
/* Prints a JSON object with all that is known now. */
void print_machine(void);
/* Prints the members "khz" and "milli_c": what changes, in the order of print_machine. */
void print_sensors(void);
/* A number of kilobytes in /proc/self/status, in bytes; 0: unknown. */
unsigned long long process_bytes(const char *field);

#endif
