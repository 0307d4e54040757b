/* processor.c - asks the processor, or the kernel on Arm, for optional instructions.
 * SPDX-License-Identifier: Apache-2.0 */
#include "processor.h"

#include <stddef.h>

#if (defined(__aarch64__) && defined(__linux__)) || defined(__x86_64__)

typedef struct bit {
    uint32_t feature;
    uint32_t position;
} bit;

static uint32_t features_of(uint64_t word, const bit *bits, size_t count)
{
    uint32_t found = 0;
    for (size_t i = 0; i < count; i++)
        if (word >> bits[i].position & 1)
            found |= bits[i].feature;
    return found;
}

#define FEATURES_OF(word, bits) features_of(word, bits, sizeof(bits) / sizeof(bits)[0])

#endif

#if defined(__aarch64__) && defined(__linux__)

/* Linux's list of what all cores have, <asm/hwcap.h>; Android has getauxval since API 18. */
unsigned long getauxval(unsigned long type);
enum { AT_HWCAP = 16, AT_HWCAP2 = 26 };

uint32_t effc_cpu_features(void)
{
    static const bit hwcap[] = {{EFFC_CPU_FULLFP16, 10}, {EFFC_CPU_DOTPROD, 20}};
    static const bit hwcap2[] = {{EFFC_CPU_I8MM, 13}};
    return FEATURES_OF(getauxval(AT_HWCAP), hwcap) | FEATURES_OF(getauxval(AT_HWCAP2), hwcap2);
}

#elif defined(__x86_64__)

#include <cpuid.h>

enum { OSXSAVE = 1 << 27, YMM_STATE = 0x6, ZMM_STATE = 0xe6 };

/* Which registers the operating system saves (XCR0). */
static uint32_t saved_state(void)
{
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

uint32_t effc_cpu_features(void)
{
    static const bit ebx[] = {{EFFC_CPU_AVX512F, 16},  {EFFC_CPU_AVX512DQ, 17},
                              {EFFC_CPU_AVX512CD, 28}, {EFFC_CPU_AVX512BW, 30},
                              {EFFC_CPU_AVX512VL, 31}};
    static const bit ecx[] = {{EFFC_CPU_AVX512VNNI, 11}};
    static const bit eax1[] = {{EFFC_CPU_AVXVNNI, 4}};
    uint32_t a, b, c, d, found = 0, state = saved_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    uint32_t last_subleaf = a;
    if ((state & ZMM_STATE) == ZMM_STATE)
        found |= FEATURES_OF(b, ebx) | FEATURES_OF(c, ecx);
    if ((state & YMM_STATE) == YMM_STATE && last_subleaf >= 1) {
        __cpuid_count(7, 1, a, b, c, d);
        found |= FEATURES_OF(a, eax1);
    }
    return found;
}

#else

uint32_t effc_cpu_features(void)
{
    return 0;
}

#endif
