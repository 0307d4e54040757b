/* semihosting.c - the wire of an emulated board: standard input and output of the emulator, opened
 * as files. Unlike the emulator's console, a file waits for data, and tells when it has ended.
 *
 * Semihosting for AArch32 and AArch64, release 3.0 (Arm), and the RISC-V semihosting
 * specification 0.2: operation in the first argument register, its block of arguments in the second.
 */
#include "port.h"

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_EXIT = 0x18 };
enum { OPEN_READ_BINARY = 1, OPEN_WRITE_BINARY = 5 };
enum { STOPPED_RUN_TIME_ERROR = 0x20023, STOPPED_APPLICATION_EXIT = 0x20026 };

static uintptr_t call(uintptr_t operation, uintptr_t argument)
{
#if defined(__arm__)
    register uintptr_t r0 __asm__("r0") = operation;
    register uintptr_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#else
    register uintptr_t a0 __asm__("a0") = operation;
    register uintptr_t a1 __asm__("a1") = argument;
    /* The three must be uncompressed and in one page. */
    __asm__ volatile(".balign 16\n"
                     ".option push\n"
                     ".option norvc\n"
                     "slli x0, x0, 0x1f\n"
                     "ebreak\n"
                     "srai x0, x0, 7\n"
                     ".option pop\n"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
#endif
}

/* The handle of standard input or output, one more than it is; 0: not open yet. */
static uintptr_t opened[2];

static uintptr_t handle(int writes)
{
    if (opened[writes] == 0) {
        static const char in[] = "/dev/stdin", out[] = "/dev/stdout";
        const uintptr_t block[3] = {
            (uintptr_t)(writes ? out : in),
            writes ? OPEN_WRITE_BINARY : OPEN_READ_BINARY,
            (writes ? sizeof out : sizeof in) - 1,
        };
        opened[writes] = call(SYS_OPEN, (uintptr_t)block) + 1;
        if (opened[writes] == 0)
            port_exit(1);
    }
    return opened[writes] - 1;
}

/* Reading and writing answer with the number of bytes that are left: all, if the wire ended. */
static void transfer(uintptr_t operation, uintptr_t file, uintptr_t address, uint32_t bytes)
{
    while (bytes > 0) {
        const uintptr_t block[3] = {file, address, bytes};
        uintptr_t left = call(operation, (uintptr_t)block);
        if (left >= bytes)
            port_exit(1);
        address += bytes - left;
        bytes = (uint32_t)left;
    }
}

void port_read(void *data, uint32_t bytes)
{
    transfer(SYS_READ, handle(0), (uintptr_t)data, bytes);
}

void port_write(const void *data, uint32_t bytes)
{
    transfer(SYS_WRITE, handle(1), (uintptr_t)data, bytes);
}

void port_exit(int code)
{
    for (;;)
        call(SYS_EXIT, code ? STOPPED_RUN_TIME_ERROR : STOPPED_APPLICATION_EXIT);
}
