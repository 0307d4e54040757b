/* arm_m.c - start-up code and counter of Cortex-M boards: vector table, floating-point unit,
 * SysTick. Registers: Armv7-M and Armv8-M Architecture Reference Manuals, B3 and D1.2.
 */
#include "port.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define SYST_CSR REGISTER(0xe000e010u)
#define SYST_RVR REGISTER(0xe000e014u)
#define SYST_CVR REGISTER(0xe000e018u)
#define SCB_CCR REGISTER(0xe000ed14u)
#define SCB_CFSR REGISTER(0xe000ed28u)
#define SCB_HFSR REGISTER(0xe000ed2cu)
#define SCB_BFAR REGISTER(0xe000ed38u)
#define SCB_CPACR REGISTER(0xe000ed88u)

enum {
    SYST_ENABLE = 1,
    SYST_TICKINT = 2,
    SYST_CLKSOURCE = 4,
    SYST_LAST = 0xffffff,
    CCR_UNALIGN_TRP = 1 << 3,
    CPACR_FPU = 0xf << 20,
};

const uint32_t port_interrupt_instructions = 5;
#ifdef __ARM_FP
const uint32_t port_interrupt_stack_bytes = 112; /* with floating-point registers, B1.5.7 */
#else
const uint32_t port_interrupt_stack_bytes = 40;
#endif
static volatile uint32_t wraps;

__attribute__((naked)) static void count_wrap(void)
{
    __asm__ volatile("ldr r0, =%c0\n"
                     "ldr r1, [r0]\n"
                     "adds r1, r1, #1\n"
                     "str r1, [r0]\n"
                     "bx lr\n"
                     ".ltorg\n"
                     :
                     : "i"(&wraps));
}

port_time port_now(void)
{
    uint32_t before, left;
    do {
        before = wraps;
        left = SYST_CVR;
    } while (before != wraps);
    return (port_time){((uint64_t)before << 24) + (SYST_LAST - left), before};
}

__attribute__((naked)) void port_loop(__attribute__((unused)) uint32_t n)
{
    __asm__ volatile("0: subs r0, r0, #1\n"
                     "bne 0b\n"
                     "bx lr\n");
}

__attribute__((naked)) void port_nothing(__attribute__((unused)) uint32_t n)
{
    __asm__ volatile("bx lr\n");
}

static void fault(const uint32_t *frame)
{
    const uint32_t words[] = {frame[6], SCB_CFSR, SCB_HFSR, SCB_BFAR};
    monitor_fault(words, sizeof words / sizeof words[0]);
}

/* A stack overflow leaves no usable stack: the report is made on a fresh one. */
__attribute__((naked)) static void faulted(void)
{
    __asm__ volatile("mov r0, sp\n"
                     "ldr r1, =port_stack_high\n"
                     "mov sp, r1\n"
                     "ldr r1, =%c0\n"
                     "bx r1\n"
                     ".ltorg\n"
                     :
                     : "i"(fault));
}

static void reset(void)
{
#ifdef EFFC_STRICT_ALIGNMENT
    SCB_CCR |= CCR_UNALIGN_TRP;
#endif
#ifdef __ARM_FP
    SCB_CPACR |= CPACR_FPU;
    __asm__ volatile("dsb\nisb" ::: "memory");
#endif
    SYST_RVR = SYST_LAST;
    SYST_CVR = 0;
    SYST_CSR = SYST_ENABLE | SYST_TICKINT | SYST_CLKSOURCE;
    monitor_main();
    port_exit(1);
}

typedef struct {
    const void *stack;
    void (*handlers[15])(void);
} vector_table;

/* The linker puts it first. Exception 15 is SysTick; none but it and faults happens. */
__attribute__((section(".vectors"), used)) const vector_table port_vectors = {
    port_stack_high,
    {reset, faulted, faulted, faulted, faulted, faulted, faulted, 0, 0, 0, faulted, faulted, 0,
     faulted, count_wrap},
};
