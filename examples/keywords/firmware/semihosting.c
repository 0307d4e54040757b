#include "semihosting.h"

#include <stdint.h>

enum { SYS_WRITE0 = 0x04, SYS_EXIT = 0x18 };
enum { APPLICATION_EXIT = 0x20026, RUN_TIME_ERROR = 0x20023 };

static void call(uint32_t operation, uint32_t argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register uint32_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void print(const char *text)
{
    call(SYS_WRITE0, (uint32_t)text);
}

void print_number(int number)
{
    char digits[12];
    int at = sizeof digits - 1;
    unsigned rest = number < 0 ? -(unsigned)number : (unsigned)number;
    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    if (number < 0)
        digits[--at] = '-';
    print(digits + at);
}

_Noreturn void leave(int status)
{
    for (;;)
        call(SYS_EXIT, status == 0 ? APPLICATION_EXIT : RUN_TIME_ERROR);
}
