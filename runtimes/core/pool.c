/* pool.c - see pool.h.
 * SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#if EFFC_THREADS

/* About a millisecond: longer than workers wait for each other at the end of a layer, and than the
 * gap between two runs in a loop. A worker that falls asleep there may be woken on the very core
 * that waits for it, and the layers after it then run one after the other. */
#if defined(__x86_64__) || defined(__i386__)
#define EFFC_SPINS 20000
#else
#define EFFC_SPINS 80000
#endif

static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` is a no-op on most cores */
#elif defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#if EFFC_FUTEX

#if defined(__x86_64__)
#define EFFC_SYS_FUTEX 202
#elif defined(__arm__) || defined(__i386__)
#define EFFC_SYS_FUTEX 240
#else
#define EFFC_SYS_FUTEX 98
#endif
#define EFFC_FUTEX_WAIT_PRIVATE 128
#define EFFC_FUTEX_WAKE_PRIVATE 129

static void event_open(effc_event *event)
{
    atomic_init(&event->value, 0);
    atomic_init(&event->sleepers, 0);
}

static void event_close(effc_event *event)
{
    (void)event;
}

static void event_advance(effc_event *event)
{
    /* Sequentially consistent on both sides: either the waiter sees the new value before it
     * sleeps, or this sees the sleeper. */
    atomic_fetch_add(&event->value, 1);
    if (atomic_load(&event->sleepers) != 0)
        syscall(EFFC_SYS_FUTEX, &event->value, EFFC_FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void event_sleep(effc_event *event, uint32_t old)
{
    atomic_fetch_add(&event->sleepers, 1);
    while (atomic_load(&event->value) == old)
        syscall(EFFC_SYS_FUTEX, &event->value, EFFC_FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&event->sleepers, 1);
}

#else

static void event_open(effc_event *event)
{
    atomic_init(&event->value, 0);
    atomic_init(&event->sleepers, 0);
    pthread_mutex_init(&event->mutex, NULL);
    pthread_cond_init(&event->changed, NULL);
}

static void event_close(effc_event *event)
{
    pthread_cond_destroy(&event->changed);
    pthread_mutex_destroy(&event->mutex);
}

static void event_advance(effc_event *event)
{
    pthread_mutex_lock(&event->mutex);
    atomic_fetch_add(&event->value, 1);
    pthread_cond_broadcast(&event->changed);
    pthread_mutex_unlock(&event->mutex);
}

static void event_sleep(effc_event *event, uint32_t old)
{
    pthread_mutex_lock(&event->mutex);
    while (atomic_load(&event->value) == old)
        pthread_cond_wait(&event->changed, &event->mutex);
    pthread_mutex_unlock(&event->mutex);
}

#endif

static void event_wait(effc_event *event, uint32_t old, int32_t spins)
{
    for (; spins > 0; spins--) {
        if (atomic_load_explicit(&event->value, memory_order_acquire) != old)
            return;
        spin_pause();
    }
    event_sleep(event, old);
}

void effc_pool_barrier(effc_pool *pool)
{
    if (pool->threads == 1)
        return;
    uint32_t old = atomic_load_explicit(&pool->phase.value, memory_order_relaxed);
    uint32_t all = (uint32_t)pool->threads;
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == all) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        event_advance(&pool->phase);
    } else {
        event_wait(&pool->phase, old, pool->spins);
    }
}

#if defined(__linux__)

static int32_t count_bits(uint64_t mask)
{
    int32_t count = 0;
    for (; mask != 0; mask &= mask - 1)
        count++;
    return count;
}

/* CPUs that the pool's threads may use: the caller's, or one for it and those of the mask. */
static int32_t usable_cpus(uint64_t affinity)
{
    uint64_t mask[16] = {0};
    int32_t count = 0;
    if (affinity != 0)
        return 1 + count_bits(affinity);
    if (sched_getaffinity(0, sizeof mask, (void *)mask) != 0)
        return 1;
    for (int i = 0; i < 16; i++)
        count += count_bits(mask[i]);
    return count;
}

static int32_t pin(uint64_t affinity)
{
    uint64_t mask[1] = {affinity};
    return sched_setaffinity(0, sizeof mask, (const void *)mask) == 0;
}

#else

static int32_t usable_cpus(uint64_t affinity)
{
    (void)affinity;
    return EFFC_MAX_THREADS;
}

static int32_t pin(uint64_t affinity)
{
    (void)affinity; /* no such call: the mask is a wish */
    return 1;
}

#endif

static void *worker_main(void *argument)
{
    const effc_worker *worker = argument;
    effc_pool *pool = worker->pool;
    if (pool->affinity != 0 && !pin(pool->affinity))
        atomic_fetch_add(&pool->refused, 1);
    for (uint32_t seen = 0;; seen++) {
        event_wait(&pool->start, seen, pool->spins);
        if (pool->function == NULL)
            return NULL;
        pool->function(pool->argument, worker->index);
        effc_pool_barrier(pool);
    }
}

void effc_pool_run(effc_pool *pool, effc_pool_fn function, void *argument)
{
    if (pool->threads == 1) {
        function(argument, 0);
        return;
    }
    pool->function = function;
    pool->argument = argument;
    event_advance(&pool->start);
    function(argument, 0);
    effc_pool_barrier(pool);
}

static void no_work(void *argument, int32_t worker)
{
    (void)argument;
    (void)worker;
}

/* Ends and joins workers 1 .. count - 1. */
static void stop_workers(effc_pool *pool, int32_t count)
{
    pool->function = NULL;
    event_advance(&pool->start);
    for (int32_t i = 1; i < count; i++)
        pthread_join(pool->workers[i].thread, NULL);
    event_close(&pool->start);
    event_close(&pool->phase);
}

effc_status effc_pool_start(effc_pool *pool, effc_worker *workers, int32_t threads,
                            uint64_t affinity)
{
    event_open(&pool->start);
    event_open(&pool->phase);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->refused, 0);
    pool->workers = workers;
    pool->affinity = affinity;
    pool->threads = threads;
    pool->spins = threads > 1 && threads <= usable_cpus(affinity) ? EFFC_SPINS : 0;
    for (int32_t i = 1; i < threads; i++) {
        workers[i].pool = pool;
        workers[i].index = i;
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) {
            stop_workers(pool, i);
            return EFFC_NO_THREADS;
        }
    }
    effc_pool_run(pool, no_work, NULL); /* all have started and are pinned after this */
    if (atomic_load(&pool->refused) != 0) {
        stop_workers(pool, threads);
        return EFFC_BAD_AFFINITY;
    }
    return EFFC_OK;
}

void effc_pool_stop(effc_pool *pool)
{
    stop_workers(pool, pool->threads);
}

#else

effc_status effc_pool_start(effc_pool *pool, effc_worker *workers, int32_t threads,
                            uint64_t affinity)
{
    (void)workers;
    (void)affinity;
    pool->threads = 1;
    return threads == 1 ? EFFC_OK : EFFC_NO_THREADS;
}

void effc_pool_run(effc_pool *pool, effc_pool_fn function, void *argument)
{
    (void)pool;
    function(argument, 0);
}

void effc_pool_barrier(effc_pool *pool)
{
    (void)pool;
}

void effc_pool_stop(effc_pool *pool)
{
    (void)pool;
}

#endif
