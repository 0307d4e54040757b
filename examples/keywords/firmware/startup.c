/* startup.c - from reset to main on a Cortex-M with floating-point unit. */
#include <stdint.h>

#include "semihosting.h"

int main(void);

/* From board.ld. */
extern uint32_t stack_top[], data_start[], data_end[], data_image[], bss_start[], bss_end[];

void reset(void);

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit, on */
    __asm__ volatile("dsb\nisb");
    const uint32_t *from = data_image;
    for (uint32_t *to = data_start; to < data_end; to++)
        *to = *from++;
    for (uint32_t *to = bss_start; to < bss_end; to++)
        *to = 0;
    leave(main());
}

static void fault(void)
{
    print("fault\n");
    leave(1);
}

/* Initial stack pointer, reset and fault handlers (Armv7-M, B1.5.3). */
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
    stack_top, reset, fault, fault, fault, fault, fault,
};

/* GCC calls these for loops that copy or clear; there is no C library here. */
void *memcpy(void *to, const void *from, __SIZE_TYPE__ bytes)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    while (bytes-- > 0)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int value, __SIZE_TYPE__ bytes)
{
    uint8_t *t = to;
    while (bytes-- > 0)
        *t++ = (uint8_t)value;
    return to;
}
