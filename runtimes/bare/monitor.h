/* monitor.h - runs a model on a board for a host at the other end of a wire.
 *
 * Both sides send frames: four words (magic, kind, bytes of the payload, CRC-32 of kind, bytes
 * and payload), then the payload. All words are little-endian. The host asks, the board answers
 * each request with one frame of the same kind, or with MONITOR_REFUSED, or MONITOR_FAULT and then ends.
 * The other side: devices/wire.py.
 */
#ifndef EFFC_MONITOR_H
#define EFFC_MONITOR_H

#include <stdint.h>

enum { MONITOR_MAGIC = 0x43464645, MONITOR_PROTOCOL = 1 };

enum {
    MONITOR_HELLO = 1, /* -> monitor_hello, then bytes per block */
    MONITOR_INPUT = 2, /* all inputs, one behind the other -> nothing */
    MONITOR_RUN = 3,   /* -> monitor_result */
    MONITOR_STEP = 4,  /* word: number of the step -> monitor_result */
    MONITOR_READ = 5,  /* words: block, offset, bytes -> those bytes */
    MONITOR_EXIT = 6,  /* -> nothing, and the program ends */
    MONITOR_REFUSED = 0x100,
    MONITOR_FAULT = 0x101, /* words of monitor_fault */
};

/* Memory of a model between guards: inputs, outputs, then the arena. */
typedef struct {
    uint32_t offset, bytes;
} monitor_block;

typedef int (*monitor_run)(const void *const *inputs, void *const *outputs, void *arena);
typedef int (*monitor_step)(int step, const void *const *inputs, void *const *outputs, void *arena);

/* Written by effc for each model. */
typedef struct {
    monitor_run run;
    monitor_step step;
    uint32_t inputs, outputs, steps;
    const monitor_block *blocks; /* inputs + outputs + 1, ascending, with space between */
    uint8_t *memory;
    uint32_t memory_bytes;
} monitor_model;

extern const monitor_model monitor_the_model;

typedef struct {
    uint32_t protocol, inputs, outputs, steps;
    uint32_t stack_bytes;            /* that there are */
    uint32_t interrupt_instructions, interrupt_stack_bytes; /* of one interrupt */
    uint32_t loop_instructions, loop_interrupts;
    uint32_t unused; /* what follows is aligned on every processor */
    uint64_t loop_ticks;     /* what loop_instructions took, to check the counter */
    /* Ticks of calls that run one instruction: of a loop, a model, a step. */
    uint64_t loop_overhead, run_overhead, step_overhead;
} monitor_hello;

enum { MONITOR_STACK_DAMAGED = 1, MONITOR_GUARD_DAMAGED = 2, MONITOR_INPUT_DAMAGED = 4 };

typedef struct {
    int32_t status;
    uint32_t stack_bytes; /* that were used */
    uint32_t damage;
    uint32_t interrupts;
    uint64_t ticks;
} monitor_result;

#endif
