/* driver.c - measures candidates of one layer; linked with their object files.
 *
 * Called as `bench JOB BYTES` with the name and the size of a file that describes the job; writes
 * one line per candidate to standard output:
 *     INDEX ROUNDS FASTEST QUARTILE          (nanoseconds per run)
 *
 * Candidates take turns, so that a disturbance of the machine hits all of them alike. Before
 * each timed run the caches are put into the state that the layer finds inside a network: the
 * weights are pushed out of the private caches by reading other memory, or out of all caches if
 * the network's weights do not fit them; the memory of results has been used before, the inputs
 * have just been written. Candidates that are clearly slower than the best one are dropped after
 * a few rounds.
 *
 * The job is a list of words:
 *     threads cpu helpers evict_bytes cold budget_us rounds
 *     buffers  { role fill bytes file }...           file is '-' or holds the contents
 *     candidates { stages scratch { function pointers { buffer offset }... split... }... }...
 * Roles: i input, o result or workspace, w weights. Fill: size of a float element, or 0 for
 * zeros. A negative buffer is the worker's scratch. `split` has threads + 1 unit indices.
 *
 * It uses only what runtimes/abi/musl.txt has of the C library.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "pool.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { MAX_POINTERS = 24, DROP_ROUNDS = 4, FAR_PERCENT = 150, NEAR_ROUNDS = 8, NEAR_PERCENT = 110 };

typedef void (*stage_fn)(void);

/* Written by the tuner: the functions under test. */
extern const stage_fn effc_bench_functions[];

typedef struct buffer {
    char role;
    size_t bytes;
    uint8_t *data;
    uint8_t *fresh; /* inputs: what is copied in before each run */
} buffer;

typedef struct stage {
    stage_fn function;
    int pointers;
    int buffers[MAX_POINTERS];
    size_t offsets[MAX_POINTERS];
    int32_t split[EFFC_MAX_THREADS + 1];
} stage;

typedef struct candidate {
    int stages;
    stage *stage;
    uint64_t *times;
    int rounds;
    int dropped;
} candidate;

typedef struct job {
    int threads;
    int cold; /* weights come from memory */
    effc_pool pool;
    buffer *buffers;
    uint8_t *scratch[EFFC_MAX_THREADS];
    const candidate *current;
} job;

static int fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static char *text; /* what is left of the job */

static char *word(void)
{
    while (*text == ' ')
        text++;
    char *begin = text;
    while (*text > ' ')
        text++;
    if (text == begin)
        fail("the job ends early");
    if (*text != 0)
        *text++ = 0;
    return begin;
}

static int64_t number(void)
{
    const char *digits = word();
    int negative = *digits == '-';
    uint64_t value = 0;
    for (digits += negative; *digits != 0; digits++) {
        if (*digits < '0' || *digits > '9')
            fail("a number was expected");
        value = value * 10 + (uint64_t)(*digits - '0');
    }
    return negative ? -(int64_t)value : (int64_t)value;
}

static void *memory(size_t bytes)
{
    void *data;
    size_t rounded = (bytes + 127) & ~(size_t)63;
    if (posix_memalign(&data, 64, rounded) != 0)
        fail("out of memory");
    memset(data, 0, rounded);
    return data;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Floats in [-1, 1) that are no denormals; all other types stay zero, which is a valid index. */
static void fill(uint8_t *data, size_t bytes, int element)
{
    uint32_t state = 12345;
    for (size_t i = 0; element > 0 && i + (size_t)element <= bytes; i += (size_t)element) {
        state = state * 1664525u + 1013904223u;
        float value = (float)(int32_t)state * (1.0f / 2147483648.0f);
        double wide = (double)value;
        uint16_t half = (uint16_t)(0x3400u | (state >> 22) | (state & 0x8000u));
        const void *source = element == 4 ? (void *)&value : element == 8 ? (void *)&wide : &half;
        memcpy(data + i, source, (size_t)element);
    }
}

static void load(uint8_t *data, size_t bytes, const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(data, 1, bytes, file) != bytes)
        fail("cannot read the contents of a buffer");
    fclose(file);
}

static void read_buffer(buffer *b)
{
    b->role = *word();
    int element = (int)number();
    b->bytes = (size_t)number();
    const char *path = word();
    b->data = memory(b->bytes);
    if (strcmp(path, "-") != 0)
        load(b->data, b->bytes, path);
    else
        fill(b->data, b->bytes, element);
    if (b->role == 'i') {
        b->fresh = memory(b->bytes);
        memcpy(b->fresh, b->data, b->bytes);
    }
}

static size_t read_candidate(candidate *c, int threads, int rounds)
{
    c->stages = (int)number();
    size_t scratch = (size_t)number();
    c->stage = memory(sizeof(stage) * (size_t)c->stages);
    c->times = memory(sizeof(uint64_t) * (size_t)rounds);
    for (int i = 0; i < c->stages; i++) {
        stage *s = &c->stage[i];
        s->function = effc_bench_functions[number()];
        s->pointers = (int)number();
        if (s->pointers > MAX_POINTERS)
            fail("too many pointers");
        for (int k = 0; k < s->pointers; k++) {
            s->buffers[k] = (int)number();
            s->offsets[k] = (size_t)number();
        }
        for (int k = 0; k <= threads; k++)
            s->split[k] = (int32_t)number();
    }
    return scratch;
}

static void call(stage_fn f, int pointers, void **p, int32_t begin, int32_t end)
{
    switch (pointers) {
#define CASE(n, types, values)                                                                    \
    case n: ((void (*)(types int32_t, int32_t))f)(values begin, end); break;
#define COMMA ,
#define T1 void * COMMA
#define T2 T1 T1
#define T4 T2 T2
#define T8 T4 T4
#define T16 T8 T8
#define A1(n) p[n] COMMA
#define A2(n) A1(n) A1(n + 1)
#define A4(n) A2(n) A2(n + 2)
#define A8(n) A4(n) A4(n + 4)
#define A16(n) A8(n) A8(n + 8)
        CASE(1, T1, A1(0))
        CASE(2, T2, A2(0))
        CASE(3, T2 T1, A2(0) A1(2))
        CASE(4, T4, A4(0))
        CASE(5, T4 T1, A4(0) A1(4))
        CASE(6, T4 T2, A4(0) A2(4))
        CASE(7, T4 T2 T1, A4(0) A2(4) A1(6))
        CASE(8, T8, A8(0))
        CASE(9, T8 T1, A8(0) A1(8))
        CASE(10, T8 T2, A8(0) A2(8))
        CASE(11, T8 T2 T1, A8(0) A2(8) A1(10))
        CASE(12, T8 T4, A8(0) A4(8))
        CASE(13, T8 T4 T1, A8(0) A4(8) A1(12))
        CASE(14, T8 T4 T2, A8(0) A4(8) A2(12))
        CASE(15, T8 T4 T2 T1, A8(0) A4(8) A2(12) A1(14))
        CASE(16, T16, A16(0))
        CASE(17, T16 T1, A16(0) A1(16))
        CASE(18, T16 T2, A16(0) A2(16))
        CASE(19, T16 T2 T1, A16(0) A2(16) A1(18))
        CASE(20, T16 T4, A16(0) A4(16))
        CASE(21, T16 T4 T1, A16(0) A4(16) A1(20))
        CASE(22, T16 T4 T2, A16(0) A4(16) A2(20))
        CASE(23, T16 T4 T2 T1, A16(0) A4(16) A2(20) A1(22))
        CASE(24, T16 T8, A16(0) A8(16))
    default: fail("too many pointers");
    }
}

static void work(void *argument, int32_t worker)
{
    job *j = argument;
    for (int i = 0; i < j->current->stages; i++) {
        const stage *s = &j->current->stage[i];
        void *p[MAX_POINTERS];
        for (int k = 0; k < s->pointers; k++)
            p[k] = s->buffers[k] < 0 ? j->scratch[worker]
                                     : j->buffers[s->buffers[k]].data + s->offsets[k];
        if (s->split[worker] < s->split[worker + 1])
            call(s->function, s->pointers, p, s->split[worker], s->split[worker + 1]);
        if (i + 1 < j->current->stages)
            effc_pool_barrier(&j->pool);
    }
}

#if defined(__x86_64__)

static int has_clflushopt(void)
{
    unsigned a, b = 0, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 23 & 1);
}

static void flush(const uint8_t *data, size_t bytes)
{
    static int fast = -1;
    if (fast < 0)
        fast = has_clflushopt();
    for (size_t i = 0; i < bytes; i += 64)
        if (fast)
            __asm__ volatile("clflushopt %0" : : "m"(data[i]));
        else
            __builtin_ia32_clflush(data + i);
    __builtin_ia32_mfence();
}

#elif defined(__aarch64__)

static void flush(const uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64)
        __asm__ volatile("dc civac, %0" : : "r"(data + i) : "memory");
    __asm__ volatile("dsb sy" : : : "memory");
}

#else

static void flush(const uint8_t *data, size_t bytes)
{
    (void)data;
    (void)bytes;
}

#endif

/* Which buffers a candidate touches decides which are warm before it runs. */
static void prepare(const job *j, const candidate *c, const uint8_t *other, size_t evict)
{
    static volatile uint32_t sink;
    uint32_t sum = 0;
    for (size_t i = 0; i < evict; i += 64)
        sum += other[i];
    sink = sum;
    (void)sink;
    for (int pass = 0; pass < 2; pass++) /* results first: the inputs were written last */
        for (int i = 0; i < c->stages; i++)
            for (int k = 0; k < c->stage[i].pointers; k++) {
                if (c->stage[i].buffers[k] < 0)
                    continue;
                const buffer *b = &j->buffers[c->stage[i].buffers[k]];
                if (pass == 0 && b->role == 'w' && j->cold)
                    flush(b->data, b->bytes);
                if (pass == 0 && b->role == 'o')
                    memset(b->data, 0, b->bytes);
                else if (pass == 1 && b->role == 'i')
                    memcpy(b->data, b->fresh, b->bytes);
            }
}

static void sort(uint64_t *times, int count)
{
    for (int i = 1; i < count; i++)
        for (int k = i; k > 0 && times[k] < times[k - 1]; k--) {
            uint64_t smaller = times[k];
            times[k] = times[k - 1];
            times[k - 1] = smaller;
        }
}

static uint64_t fastest(const candidate *c)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < c->rounds; i++)
        if (c->times[i] < best)
            best = c->times[i];
    return best;
}

/* Leave out candidates that can no longer win. */
static void drop_slow(candidate *candidates, int count, int round)
{
    int percent = round >= NEAR_ROUNDS ? NEAR_PERCENT : FAR_PERCENT;
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < count; i++) {
        uint64_t time = fastest(&candidates[i]);
        best = time < best ? time : best;
    }
    for (int i = 0; round >= DROP_ROUNDS && i < count; i++)
        if (fastest(&candidates[i]) * 100 > best * (uint64_t)percent)
            candidates[i].dropped = 1;
}

static void pin(int64_t cpu)
{
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (cpu >= 0)
        sched_setaffinity(0, sizeof set, &set);
#endif
}

int main(int argc, char **argv)
{
    static job j;
    static effc_worker workers[EFFC_MAX_THREADS];
    if (argc != 3)
        fail("usage: bench JOB BYTES");
    text = argv[2];
    size_t bytes = (size_t)number();
    text = memory(bytes + 1);
    load((uint8_t *)text, bytes, argv[1]);
    j.threads = (int)number();
    int64_t cpu = number();
    uint64_t helpers = (uint64_t)number();
    size_t evict = (size_t)number();
    j.cold = number() != 0;
    uint64_t budget = (uint64_t)number() * 1000u;
    int rounds = (int)number();
    int buffers = (int)number();
    j.buffers = memory(sizeof(buffer) * (size_t)buffers);
    for (int i = 0; i < buffers; i++)
        read_buffer(&j.buffers[i]);
    int count = (int)number();
    size_t scratch = 0;
    candidate *candidates = memory(sizeof(candidate) * (size_t)count);
    for (int i = 0; i < count; i++) {
        size_t wanted = read_candidate(&candidates[i], j.threads, rounds);
        scratch = wanted > scratch ? wanted : scratch;
    }
    for (int i = 0; i < j.threads; i++)
        j.scratch[i] = memory(scratch);
    const uint8_t *other = memory(evict);
    if (effc_pool_start(&j.pool, workers, j.threads, helpers) != EFFC_OK)
        fail("cannot start threads");
    pin(cpu);

    uint64_t start = now();
    for (int round = -1; round < rounds; round++) { /* the first one warms up */
        for (int i = 0; i < count; i++) {
            candidate *c = &candidates[round % 2 ? count - 1 - i : i];
            if (c->dropped)
                continue;
            prepare(&j, c, other, evict);
            j.current = c;
            uint64_t begin = now();
            effc_pool_run(&j.pool, work, &j);
            uint64_t time = now() - begin;
            if (round >= 0)
                c->times[c->rounds++] = time;
        }
        drop_slow(candidates, count, round + 1);
        if (round + 1 >= NEAR_ROUNDS && now() - start > budget)
            break;
    }
    effc_pool_stop(&j.pool);
    for (int i = 0; i < count; i++) {
        candidate *c = &candidates[i];
        sort(c->times, c->rounds);
        printf("%d %d %" PRIu64 " %" PRIu64 "\n", i, c->rounds, c->times[0],
               c->times[c->rounds / 4]);
    }
    return 0;
}
