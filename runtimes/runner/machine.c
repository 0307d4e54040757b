/* machine.c - what Linux tells about processors, clocks and temperatures.
 *
 * Any file may be missing: phones hide some, virtual machines have few. What is not there is
 * null. Sources: Documentation/ABI/testing/sysfs-devices-system-cpu, sysfs-class-thermal and
 * Documentation/admin-guide/pm/cpufreq.rst of the kernel.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runner.h"

enum { MOST = 256 }; /* processors, thermal zones, cooling devices */

static const char *below;
static int cpus, zone_count;
static int zones[MOST];

/* First line of a file, at most bytes - 1 characters; whether it could be read. */
static int read_line(char *text, size_t bytes, const char *path)
{
    char full[512];
    text[0] = '\0';
    if (snprintf(full, sizeof full, "%s/%s", below, path) >= (int)sizeof full)
        return 0;
    int file = open(full, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t got = pread(file, text, bytes - 1, 0);
    close(file);
    text[got > 0 ? got : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return got > 0;
}

static int read_number(long long *value, const char *path)
{
    char text[64], *end = text;
    if (!read_line(text, sizeof text, path))
        return 0;
    *value = strtoll(text, &end, 10);
    return end != text;
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c >= ' ' && c < 127)
            putchar(c);
        else
            printf("\\u%04x", c);
    }
    putchar('"');
}

static void print_text(const char *name, const char *path)
{
    char text[256];
    printf("\"%s\": ", name);
    if (read_line(text, sizeof text, path))
        print_string(text);
    else
        printf("null");
}

static void print_number(const char *path)
{
    long long value;
    if (read_number(&value, path))
        printf("%lld", value);
    else
        printf("null");
}

/* A path with a number in it; valid until the next call. */
static const char *numbered(const char *format, int number, const char *file)
{
    static char path[256];
    snprintf(path, sizeof path, format, number, file);
    return path;
}

static const char *cpu_path(int cpu, const char *file)
{
    return numbered("sys/devices/system/cpu/cpu%d/%s", cpu, file);
}

static const char *zone_path(int zone, const char *file)
{
    return numbered("sys/class/thermal/thermal_zone%d/%s", zone, file);
}

void find_machine(const char *root)
{
    char text[256];
    long long value;
    below = root;
    if (read_line(text, sizeof text, "sys/devices/system/cpu/present")) {
        const char *last = strrchr(text, '-');
        const char *comma = strrchr(text, ',');
        last = comma > last ? comma : last;
        cpus = atoi(last != NULL ? last + 1 : text) + 1;
        cpus = cpus > MOST ? MOST : cpus;
    }
    for (int zone = 0; zone < MOST; zone++)
        if (read_number(&value, zone_path(zone, "temp")))
            zones[zone_count++] = zone;
}

static void print_cpus(void)
{
    static const struct {
        const char *name, *file;
    } numbers[] = {
        {"capacity", "cpu_capacity"},
        {"lowest_khz", "cpufreq/cpuinfo_min_freq"},
        {"highest_khz", "cpufreq/cpuinfo_max_freq"},
        {"limit_khz", "cpufreq/scaling_max_freq"},
        {"khz", "cpufreq/scaling_cur_freq"},
        {"throttled", "thermal_throttle/core_throttle_count"},
    };
    printf("\"cpus\": [");
    for (int cpu = 0; cpu < cpus; cpu++) {
        printf("%s{\"cpu\": %d", cpu > 0 ? ", " : "", cpu);
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            printf(", \"%s\": ", numbers[i].name);
            print_number(cpu_path(cpu, numbers[i].file));
        }
        printf(", ");
        print_text("governor", cpu_path(cpu, "cpufreq/scaling_governor"));
        printf(", ");
        print_text("siblings", cpu_path(cpu, "topology/thread_siblings_list"));
        printf("}");
    }
    printf("]");
}

static void print_zones(void)
{
    printf("\"zones\": [");
    for (int i = 0; i < zone_count; i++) {
        printf("%s{\"zone\": %d, ", i > 0 ? ", " : "", zones[i]);
        print_text("type", zone_path(zones[i], "type"));
        printf(", \"milli_c\": ");
        print_number(zone_path(zones[i], "temp"));
        printf("}");
    }
    printf("], \"cooling\": [");
    int first = 1;
    for (int i = 0; i < MOST; i++) {
        const char *format = "sys/class/thermal/cooling_device%d/%s";
        long long state;
        if (!read_number(&state, numbered(format, i, "cur_state")))
            continue;
        printf("%s{\"device\": %d, ", first ? "" : ", ", i);
        print_text("type", numbered(format, i, "type"));
        printf(", \"state\": %lld, \"most\": ", state);
        print_number(numbered(format, i, "max_state"));
        printf("}");
        first = 0;
    }
    printf("]");
}

static void print_allowed(void)
{
    uint64_t mask[16] = {0}; /* 1024 processors */
    int known = sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask) == 0;
    int first = 1;
    printf("\"allowed\": [");
    for (int cpu = 0; known && cpu < 1024; cpu++) {
        if ((mask[cpu / 64] >> (cpu % 64) & 1) == 0)
            continue;
        printf("%s%d", first ? "" : ", ", cpu);
        first = 0;
    }
    printf("]");
}

void print_machine(void)
{
    printf("{");
    print_cpus();
    printf(", ");
    print_zones();
    printf(", ");
    print_allowed();
    printf(", ");
    print_text("online", "sys/devices/system/cpu/online");
    printf(", ");
    print_text("load", "proc/loadavg");
    printf(", ");
    print_text("raspberry_pi", "sys/devices/platform/soc/soc:firmware/get_throttled");
    printf("}");
}

void print_sensors(void)
{
    printf("\"khz\": [");
    for (int cpu = 0; cpu < cpus; cpu++) {
        printf("%s", cpu > 0 ? ", " : "");
        print_number(cpu_path(cpu, "cpufreq/scaling_cur_freq"));
    }
    printf("], \"milli_c\": [");
    for (int i = 0; i < zone_count; i++) {
        printf("%s", i > 0 ? ", " : "");
        print_number(zone_path(zones[i], "temp"));
    }
    printf("]");
}

unsigned long long process_bytes(const char *field)
{
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t got = pread(file, text, sizeof text - 1, 0);
    close(file);
    text[got > 0 ? got : 0] = '\0';
    const char *found = strstr(text, field);
    return found != NULL ? strtoull(found + strlen(field) + 1, NULL, 10) * 1024 : 0;
}
