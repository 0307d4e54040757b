/* monitor.c - see monitor.h. Everything around a model that could be damaged is painted before
 * each call and looked at afterwards.
 */
#include "monitor.h"

#include "port.h"

enum { PAINT = 0xc5, STACK_GUARD_WORDS = 16, LOOP = 3000000, MOST_PORTS = 64 };
#define PAINT_WORD 0xc5c5c5c5u

static uint32_t input_crc;

static uint32_t crc_of(uint32_t crc, const void *data, uint32_t bytes)
{
    const uint8_t *next = data;
    for (crc = ~crc; bytes > 0; bytes--) {
        crc ^= *next++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
    }
    return ~crc;
}

static void answer(uint32_t kind, const void *data, uint32_t bytes)
{
    uint32_t head[4] = {MONITOR_MAGIC, kind, bytes, 0};
    head[3] = crc_of(crc_of(0, &head[1], 8), data, bytes);
    port_write(head, sizeof head);
    port_write(data, bytes);
}

void monitor_fault(const uint32_t *words, uint32_t count)
{
    answer(MONITOR_FAULT, words, count * 4);
    port_exit(1);
}

static const monitor_block *arena_block(void)
{
    return &monitor_the_model.blocks[monitor_the_model.inputs + monitor_the_model.outputs];
}

/* Calls `each` on the bytes of memory between the blocks until it says no. */
static int between_blocks(int (*each)(uint8_t *bytes, uint32_t count))
{
    const monitor_model *m = &monitor_the_model;
    uint32_t at = 0;
    for (const monitor_block *block = m->blocks; block <= arena_block(); block++) {
        if (!each(m->memory + at, block->offset - at))
            return 0;
        at = block->offset + block->bytes;
    }
    return each(m->memory + at, m->memory_bytes - at);
}

static int paint(uint8_t *bytes, uint32_t count)
{
    for (volatile uint8_t *byte = bytes; count > 0; count--)
        *byte++ = PAINT;
    return 1;
}

static int is_paint(uint8_t *bytes, uint32_t count)
{
    while (count > 0 && *bytes == PAINT) {
        bytes++;
        count--;
    }
    return count == 0;
}

static uint32_t crc_of_inputs(void)
{
    const monitor_model *m = &monitor_the_model;
    uint32_t crc = 0;
    for (uint32_t i = 0; i < m->inputs; i++)
        crc = crc_of(crc, m->memory + m->blocks[i].offset, m->blocks[i].bytes);
    return crc;
}

/* Pointers to inputs and outputs as the model takes them. */
static const void *input_pointers[MOST_PORTS];
static void *output_pointers[MOST_PORTS];
static void *arena;

static void set_pointers(void)
{
    const monitor_model *m = &monitor_the_model;
    for (uint32_t i = 0; i < m->inputs; i++)
        input_pointers[i] = m->memory + m->blocks[i].offset;
    for (uint32_t i = 0; i < m->outputs; i++)
        output_pointers[i] = m->memory + m->blocks[m->inputs + i].offset;
    arena = m->memory + arena_block()->offset;
}

typedef struct {
    int status;
    const uint32_t *stack; /* when the call was made */
    port_time begin, end;
} measured;

__attribute__((noinline)) static measured measure_run(monitor_run run)
{
    measured result;
    result.stack = port_stack_pointer();
    result.begin = port_now();
    result.status = run(input_pointers, output_pointers, arena);
    result.end = port_now();
    return result;
}

__attribute__((noinline)) static measured measure_step(monitor_step step, int number)
{
    measured result;
    result.stack = port_stack_pointer();
    result.begin = port_now();
    result.status = step(number, input_pointers, output_pointers, arena);
    result.end = port_now();
    return result;
}

/* Paints all of the stack that is not in use. */
__attribute__((noinline)) static void paint_stack(void)
{
    volatile uint32_t *end = port_stack_pointer();
    for (volatile uint32_t *word = port_stack_low; word < end; word++)
        *word = PAINT_WORD;
}

/* The call, with everything around it checked. number < 0: all steps. */
__attribute__((noinline)) static monitor_result checked_call(int number)
{
    const monitor_model *m = &monitor_the_model;
    between_blocks(paint);
    paint_stack();
    measured took = number < 0 ? measure_run(m->run) : measure_step(m->step, number);
    const uint32_t *low = port_stack_low;
    while (low < took.stack && *low == PAINT_WORD)
        low++;
    monitor_result result = {took.status, (uint32_t)(took.stack - low) * 4, 0,
                             took.end.interrupts - took.begin.interrupts,
                             took.end.ticks - took.begin.ticks};
    if (low < port_stack_low + STACK_GUARD_WORDS)
        result.damage |= MONITOR_STACK_DAMAGED;
    if (!between_blocks(is_paint))
        result.damage |= MONITOR_GUARD_DAMAGED;
    if (crc_of_inputs() != input_crc)
        result.damage |= MONITOR_INPUT_DAMAGED;
    return result;
}

__attribute__((noinline)) static measured measure_loop(void (*loop)(uint32_t), uint32_t n)
{
    measured result;
    result.begin = port_now();
    loop(n);
    result.end = port_now();
    return result;
}

static void hello(void)
{
    const monitor_model *m = &monitor_the_model;
    measured loop = measure_loop(port_loop, LOOP);
    measured nothing = measure_loop(port_nothing, LOOP);
    measured run = measure_run((monitor_run)(uintptr_t)port_nothing);
    measured step = measure_step((monitor_step)(uintptr_t)port_nothing, 0);
    struct {
        monitor_hello fixed;
        uint32_t bytes[2 * MOST_PORTS + 1];
    } said = {{MONITOR_PROTOCOL, m->inputs, m->outputs, m->steps,
               (uint32_t)(port_stack_high - port_stack_low) * 4, port_interrupt_instructions,
               port_interrupt_stack_bytes, 2 * LOOP + 1, loop.end.interrupts - loop.begin.interrupts, 0,
               loop.end.ticks - loop.begin.ticks, nothing.end.ticks - nothing.begin.ticks,
               run.end.ticks - run.begin.ticks, step.end.ticks - step.begin.ticks},
              {0}};
    uint32_t blocks = m->inputs + m->outputs + 1;
    for (uint32_t i = 0; i < blocks; i++)
        said.bytes[i] = m->blocks[i].bytes;
    answer(MONITOR_HELLO, &said, sizeof said.fixed + blocks * 4);
}

/* Reads a payload of exactly these bytes; 0 if its sum is wrong. */
static int payload(const uint32_t *head, void *data, uint32_t bytes)
{
    if (head[2] != bytes)
        return 0;
    port_read(data, bytes);
    return head[3] == crc_of(crc_of(0, &head[1], 8), data, bytes);
}

static int read_inputs(const uint32_t *head)
{
    const monitor_model *m = &monitor_the_model;
    uint32_t total = 0, crc = crc_of(0, &head[1], 8);
    for (uint32_t i = 0; i < m->inputs; i++)
        total += m->blocks[i].bytes;
    if (head[2] != total)
        return 0;
    for (uint32_t i = 0; i < m->inputs; i++) {
        port_read(m->memory + m->blocks[i].offset, m->blocks[i].bytes);
        crc = crc_of(crc, m->memory + m->blocks[i].offset, m->blocks[i].bytes);
    }
    input_crc = crc_of_inputs();
    return crc == head[3];
}

static int serve(const uint32_t *head)
{
    const monitor_model *m = &monitor_the_model;
    uint32_t words[3];
    monitor_result result;
    switch (head[1]) {
    case MONITOR_HELLO:
        if (!payload(head, words, 0))
            return 0;
        hello();
        return 1;
    case MONITOR_INPUT:
        if (!read_inputs(head))
            return 0;
        answer(MONITOR_INPUT, words, 0);
        return 1;
    case MONITOR_RUN:
    case MONITOR_STEP:
        if (!payload(head, words, head[1] == MONITOR_STEP ? 4 : 0))
            return 0;
        if (head[1] == MONITOR_STEP && words[0] >= m->steps)
            return 0;
        result = checked_call(head[1] == MONITOR_STEP ? (int)words[0] : -1);
        answer(head[1], &result, sizeof result);
        return 1;
    case MONITOR_READ:
        if (!payload(head, words, 12) || words[0] > m->inputs + m->outputs)
            return 0;
        const monitor_block *block = &m->blocks[words[0]];
        if (words[1] > block->bytes || words[2] > block->bytes - words[1])
            return 0;
        answer(MONITOR_READ, m->memory + block->offset + words[1], words[2]);
        return 1;
    case MONITOR_EXIT:
        answer(MONITOR_EXIT, words, 0);
        port_exit(0);
        return 1;
    default:
        return 0;
    }
}

/* Finds the next frame: what is no magic is skipped, byte by byte. */
static void next_frame(uint32_t *head)
{
    uint8_t *bytes = (uint8_t *)head;
    port_read(bytes, 4);
    while (head[0] != MONITOR_MAGIC) {
        for (int i = 0; i < 3; i++)
            bytes[i] = bytes[i + 1];
        port_read(bytes + 3, 1);
    }
    port_read(bytes + 4, 12);
}

void monitor_main(void)
{
    uint32_t head[4];
    set_pointers();
    for (;;) {
        next_frame(head);
        if (!serve(head))
            answer(MONITOR_REFUSED, head, 0);
    }
}
