/* port.h - what a board gives to the monitor (monitor.c): a wire and a counter. */
#ifndef EFFC_PORT_H
#define EFFC_PORT_H

#include <stdint.h>

/* Ticks of a counter since the start, and interrupts that kept it going: their instructions are
 * not the model's. */
typedef struct {
    uint64_t ticks;
    uint32_t interrupts;
} port_time;

/* Reads or writes all bytes; a wire that ends ends the program. */
void port_read(void *data, uint32_t bytes);
void port_write(const void *data, uint32_t bytes);

port_time port_now(void);

/* Runs 2 * n + 1 instructions, return included: what the counter is checked with. n > 0. */
void port_loop(uint32_t n);

/* Runs one instruction, its return; takes any arguments. */
void port_nothing(uint32_t);

/* Instructions of one interrupt, and bytes that it pushes on the stack. */
extern const uint32_t port_interrupt_instructions, port_interrupt_stack_bytes;

/* The stack pointer in the function that asks. */
__attribute__((always_inline)) static inline uint32_t *port_stack_pointer(void)
{
    uint32_t *pointer;
#if defined(__arm__)
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
#else
    __asm__ volatile("mv %0, sp" : "=r"(pointer));
#endif
    return pointer;
}

/* Never returns. */
void port_exit(int code);

/* The monitor, called by start-up code with a stack that is all its own. */
void monitor_main(void);

/* Called when the processor faults, with words that tell why: address of the instruction first. */
void monitor_fault(const uint32_t *words, uint32_t count);

/* The stack's memory, it grows down; both from the linker. */
extern uint32_t port_stack_low[], port_stack_high[];

#endif
