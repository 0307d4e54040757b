/* pool.h - a fixed set of threads that run one function together.
 *
 * The thread that calls effc_pool_run is worker 0; the pool owns workers 1 .. threads - 1.
 * Waiting spins for about a millisecond, then sleeps in the kernel.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_POOL_H
#define EFFC_POOL_H

#include "system.h" /* first: it chooses the C library's feature set */

#include <stdatomic.h>

#include "effc.h"

/* The condition-variable form serves systems without futexes. */
#ifndef EFFC_FUTEX
#if defined(__linux__)
#define EFFC_FUTEX 1
#else
#define EFFC_FUTEX 0
#endif
#endif

/* A counter that threads wait on. */
typedef struct effc_event {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
#if EFFC_THREADS && !EFFC_FUTEX
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
} effc_event;

typedef void (*effc_pool_fn)(void *argument, int32_t worker);

typedef struct effc_pool effc_pool;

typedef struct effc_worker {
    effc_thread thread;
    effc_pool *pool;
    int32_t index;
} effc_worker;

struct effc_pool {
    effc_event start; /* advances when there is work, or when the pool stops */
    effc_event phase; /* advances when all workers have reached a barrier */
    _Atomic uint32_t arrived;
    _Atomic int32_t refused; /* workers that got no CPU of the mask */
    effc_pool_fn function;
    void *argument;
    effc_worker *workers; /* `threads` entries, the first unused */
    uint64_t affinity;
    int32_t threads;
    int32_t spins;
};

/* Starts `threads` - 1 threads. `workers` has room for `threads` entries. */
effc_status effc_pool_start(effc_pool *pool, effc_worker *workers, int32_t threads,
                            uint64_t affinity);

/* Runs function(argument, worker) on every worker and returns when all have returned. */
void effc_pool_run(effc_pool *pool, effc_pool_fn function, void *argument);

/* Called by all workers within a function: returns when all have called it. */
void effc_pool_barrier(effc_pool *pool);

void effc_pool_stop(effc_pool *pool);

#endif
