/* The static work split: for any extent, bounds and number of threads the workers' ranges are
 * disjoint, ordered and complete, unit 0 is worker 0's, and no worker gets more than its fair share
 * plus one unit. */
#include "model.c"

#include <stdio.h>

static uint32_t state = 1;

static uint32_t next_random(uint32_t below)
{
    state = state * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)state * below) >> 32);
}

static int check(const effc_step *step, int32_t threads)
{
    int32_t expected = 0;
    for (int32_t w = 0; w < threads; w++) {
        int32_t begin = first_unit(step, w, threads), end = first_unit(step, w + 1, threads);
        if (begin != expected || end < begin || (w == 0 && end == 0))
            return 0;
        expected = end;
        double all = step->bounds ? step->bounds[step->extent] : step->extent;
        double work = step->bounds ? step->bounds[end] - step->bounds[begin] : end - begin;
        double largest = step->bounds ? 1000 : 1;
        if (work > all / threads + largest)
            return 0;
    }
    return expected == step->extent;
}

int main(void)
{
    static uint32_t bounds[301];
    for (int round = 0; round < 20000; round++) {
        int32_t extent = 1 + (int32_t)next_random(300);
        bounds[0] = 0;
        for (int32_t i = 0; i < extent; i++)
            bounds[i + 1] = bounds[i] + 1 + next_random(1000);
        effc_step step = {0, next_random(2) ? bounds : 0, extent};
        if (!check(&step, 1 + (int32_t)next_random(EFFC_MAX_THREADS))) {
            fprintf(stderr, "round %d\n", round);
            return 1;
        }
    }
    effc_step huge = {0, 0, INT32_MAX};
    return check(&huge, EFFC_MAX_THREADS) ? 0 : 2;
}
