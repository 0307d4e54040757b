/* riscv.c - start-up code and counter of RISC-V boards, machine mode only. CSRs: The RISC-V
 * Instruction Set Manual, volume II, 3.1. The emulator's counter of retired instructions is exact.
 */
#include "port.h"

const uint32_t port_interrupt_instructions = 0, port_interrupt_stack_bytes = 0;

port_time port_now(void)
{
    uint32_t high, low, again;
    do {
        __asm__ volatile("csrr %0, minstreth" : "=r"(high));
        __asm__ volatile("csrr %0, minstret" : "=r"(low));
        __asm__ volatile("csrr %0, minstreth" : "=r"(again));
    } while (high != again);
    return (port_time){((uint64_t)high << 32) | low, 0};
}

__attribute__((naked)) void port_loop(__attribute__((unused)) uint32_t n)
{
    __asm__ volatile("0: addi a0, a0, -1\n"
                     "bnez a0, 0b\n"
                     "ret\n");
}

__attribute__((naked)) void port_nothing(__attribute__((unused)) uint32_t n)
{
    __asm__ volatile("ret\n");
}

__attribute__((used)) static void fault(void)
{
    uint32_t words[3];
    __asm__ volatile("csrr %0, mepc" : "=r"(words[0]));
    __asm__ volatile("csrr %0, mcause" : "=r"(words[1]));
    __asm__ volatile("csrr %0, mtval" : "=r"(words[2]));
    monitor_fault(words, sizeof words / sizeof words[0]);
}

/* A stack overflow leaves no usable stack: the report is made on a fresh one. */
__attribute__((naked, aligned(4))) static void faulted(void)
{
    __asm__ volatile("la sp, port_stack_high\n"
                     "j fault\n");
}

__attribute__((used)) static void reset(void)
{
    __asm__ volatile("csrw mtvec, %0" : : "r"((uintptr_t)faulted));
    monitor_main();
    port_exit(1);
}

/* The linker puts it first. */
__attribute__((naked, section(".vectors"), used)) void port_start(void)
{
    __asm__ volatile("la sp, port_stack_high\n"
                     "j reset\n");
}
