/* effc_weights.h - maps a file of weights into memory, for libraries without weights of their own.
 *
 *     effc_options options = {0};
 *     if (effc_map_weights("NAME.bin", &options) != 0)
 *         perror("NAME.bin");
 *     ... NAME_create(&options, &model) ... NAME_destroy(model);
 *     effc_unmap_weights(&options);
 *
 * Pages are read when they are used, and shared by all processes that map the file.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_WEIGHTS_H
#define EFFC_WEIGHTS_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "effc.h"

/* Sets options->weights and weights_bytes. Returns 0, or -1 with the reason in errno. */
static inline int effc_map_weights(const char *path, effc_options *options)
{
    struct stat facts;
    void *memory = MAP_FAILED;
    int file = open(path, O_RDONLY);
    if (file < 0)
        return -1;
    if (fstat(file, &facts) == 0)
        memory = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (memory == MAP_FAILED)
        return -1;
    options->weights = memory;
    options->weights_bytes = (size_t)facts.st_size;
    return 0;
}

/* No instance may use the weights any more. */
static inline void effc_unmap_weights(effc_options *options)
{
    if (options->weights != NULL)
        munmap((void *)(uintptr_t)options->weights, options->weights_bytes);
    options->weights = NULL;
    options->weights_bytes = 0;
}

#endif
