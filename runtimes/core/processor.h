/* processor.h - what the processor has beyond what the target promises. Not installed.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef EFFC_PROCESSOR_H
#define EFFC_PROCESSOR_H

#include <stdint.h>

/* LLVM's names of features. */
enum {
    EFFC_CPU_FULLFP16 = 1 << 0,
    EFFC_CPU_DOTPROD = 1 << 1,
    EFFC_CPU_I8MM = 1 << 2,
    EFFC_CPU_AVXVNNI = 1 << 3,
    EFFC_CPU_AVX512F = 1 << 4,
    EFFC_CPU_AVX512CD = 1 << 5,
    EFFC_CPU_AVX512BW = 1 << 6,
    EFFC_CPU_AVX512DQ = 1 << 7,
    EFFC_CPU_AVX512VL = 1 << 8,
    EFFC_CPU_AVX512VNNI = 1 << 9
};

/* The features that every core of this machine has and the operating system supports. */
uint32_t effc_cpu_features(void);

#endif
