/* load.c - lets main.c run a shared library that was made for Android or Linux.
 *
 * A static executable has no dynamic linker, and an emulator has no bionic: so this maps the
 * library itself, resolves the few C functions that effc's libraries may use to the ones linked in
 * here (effc_functions), and calls its model. What is tested is the very file that ships.
 *
 * The library is the file named by EFFC_LIBRARY, with weights in the file named by EFFC_WEIGHTS, or
 * both lie behind this program in one file, which then ends with a `trailer`. The model is the
 * one named by EFFC_NAME, or the only one of the library.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE 1
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner.h"

/* Generated: the functions of runtimes/abi/symbols.toml, the last entry null. */
typedef struct effc_function {
    const char *name;
    const void *address;
} effc_function;
extern const effc_function effc_functions[];

#if defined(__aarch64__)
enum { ABSOLUTE = 257, GLOB_DAT = 1025, JUMP_SLOT = 1026, RELATIVE = 1027 };
#elif defined(__arm__)
enum { ABSOLUTE = 2, GLOB_DAT = 21, JUMP_SLOT = 22, RELATIVE = 23 };
#elif defined(__x86_64__)
enum { ABSOLUTE = 1, GLOB_DAT = 6, JUMP_SLOT = 7, RELATIVE = 8 };
#else
#error "no relocation types for this architecture"
#endif

#if UINTPTR_MAX > 0xffffffffu
#define SYMBOL_OF ELF64_R_SYM
#define TYPE_OF ELF64_R_TYPE
#else
#define SYMBOL_OF ELF32_R_SYM
#define TYPE_OF ELF32_R_TYPE
#endif

typedef struct image {
    uint8_t *base;
    const ElfW(Sym) *symbols;
    const char *names;
    size_t symbol_count;
} image;

/* Last bytes of a program that carries its library: where in the file things are, at multiples of
 * the largest page, little-endian. */
typedef struct trailer {
    char magic[8]; /* "EFFCPACK" */
    uint64_t library, weights, weights_bytes;
} trailer;

/* Files behind a model. */
typedef struct origin {
    int library, weights; /* descriptors, -1: no file of weights */
    off_t library_offset, weights_offset;
    size_t weights_bytes;
} origin;

static uintptr_t page_down(uintptr_t value)
{
    return value & ~((uintptr_t)getpagesize() - 1);
}

static uintptr_t page_up(uintptr_t value)
{
    return page_down(value + (uintptr_t)getpagesize() - 1);
}

static int protection(const ElfW(Phdr) *segment)
{
    return (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0) |
           (segment->p_flags & PF_X ? PROT_EXEC : 0);
}

/* One segment: its pages of the file, then zeros up to its size in memory. */
static void map_segment(uint8_t *base, const origin *from, const ElfW(Phdr) *segment)
{
    uintptr_t start = page_down(segment->p_vaddr);
    uintptr_t skipped = segment->p_vaddr - start;
    uintptr_t file_end = segment->p_vaddr + segment->p_filesz;
    if (segment->p_filesz > 0 &&
        mmap(base + start, segment->p_filesz + skipped, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_FIXED, from->library,
             from->library_offset + (off_t)(segment->p_offset - skipped)) == MAP_FAILED)
        die("library", "cannot map a segment");
    if (segment->p_memsz > segment->p_filesz)
        memset(base + file_end, 0, page_up(file_end) - file_end);
}

static uint8_t *map_file(const origin *from, const ElfW(Phdr) *segments, int count)
{
    uintptr_t end = 0, align = 1;
    for (int i = 0; i < count; i++) {
        if (segments[i].p_type != PT_LOAD)
            continue;
        uintptr_t last = segments[i].p_vaddr + segments[i].p_memsz;
        end = last > end ? last : end;
        align = segments[i].p_align > align ? segments[i].p_align : align;
    }
    uint8_t *memory = mmap(NULL, page_up(end) + align, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("library", "out of memory");
    uint8_t *base = (uint8_t *)(((uintptr_t)memory + align - 1) & ~(align - 1));
    for (int i = 0; i < count; i++)
        if (segments[i].p_type == PT_LOAD)
            map_segment(base, from, &segments[i]);
    return base;
}

static const void *find(const char *name)
{
    for (const effc_function *f = effc_functions; f->name != NULL; f++)
        if (strcmp(f->name, name) == 0)
            return f->address;
    die("library needs an unknown function", name);
    return NULL;
}

static uintptr_t address_of(const image *lib, uint32_t index)
{
    const ElfW(Sym) *symbol = &lib->symbols[index];
    if (symbol->st_shndx != SHN_UNDEF)
        return (uintptr_t)lib->base + symbol->st_value;
    return (uintptr_t)find(lib->names + symbol->st_name);
}

static void relocate(const image *lib, uintptr_t offset, uint32_t type, uint32_t symbol,
                     uintptr_t addend)
{
    uintptr_t *place = (uintptr_t *)(lib->base + offset);
    if (type == RELATIVE)
        *place = (uintptr_t)lib->base + addend;
    else if (type == ABSOLUTE)
        *place = address_of(lib, symbol) + addend;
    else if (type == GLOB_DAT || type == JUMP_SLOT)
        *place = address_of(lib, symbol);
    else
        die("library", "unknown relocation");
}

static void relocate_table(const image *lib, uintptr_t table, size_t bytes, int with_addends)
{
    if (with_addends) {
        const ElfW(Rela) *r = (const ElfW(Rela) *)(lib->base + table);
        for (size_t i = 0; i < bytes / sizeof *r; i++)
            relocate(lib, r[i].r_offset, (uint32_t)TYPE_OF(r[i].r_info),
                     (uint32_t)SYMBOL_OF(r[i].r_info), (uintptr_t)r[i].r_addend);
    } else {
        const ElfW(Rel) *r = (const ElfW(Rel) *)(lib->base + table);
        for (size_t i = 0; i < bytes / sizeof *r; i++)
            relocate(lib, r[i].r_offset, (uint32_t)TYPE_OF(r[i].r_info),
                     (uint32_t)SYMBOL_OF(r[i].r_info),
                     *(const uintptr_t *)(lib->base + r[i].r_offset));
    }
}

/* Reads the dynamic section and applies all relocations. */
static void link_image(image *lib, const ElfW(Dyn) *dynamic)
{
    uintptr_t value[DT_NUM] = {0};
    for (; dynamic->d_tag != DT_NULL; dynamic++)
        if (dynamic->d_tag > 0 && dynamic->d_tag < DT_NUM)
            value[dynamic->d_tag] = dynamic->d_un.d_val;
    if (value[DT_SYMTAB] == 0 || value[DT_STRTAB] == 0 || value[DT_HASH] == 0)
        die("library", "no symbol table");
    lib->symbols = (const ElfW(Sym) *)(lib->base + value[DT_SYMTAB]);
    lib->names = (const char *)(lib->base + value[DT_STRTAB]);
    lib->symbol_count = ((const uint32_t *)(lib->base + value[DT_HASH]))[1];
    relocate_table(lib, value[DT_RELA], value[DT_RELASZ], 1);
    relocate_table(lib, value[DT_REL], value[DT_RELSZ], 0);
    relocate_table(lib, value[DT_JMPREL], value[DT_PLTRELSZ], value[DT_PLTREL] == DT_RELA);
}

static void protect(const image *lib, const ElfW(Phdr) *segments, int count)
{
    for (int i = 0; i < count; i++) {
        if (segments[i].p_type != PT_LOAD)
            continue;
        uintptr_t start = page_down(segments[i].p_vaddr);
        uintptr_t end = page_up(segments[i].p_vaddr + segments[i].p_memsz);
        if (mprotect(lib->base + start, end - start, protection(&segments[i])) != 0)
            die("library", "cannot protect a segment");
    }
}

static image load(const origin *from)
{
    image lib = {0};
    ElfW(Ehdr) header;
    ElfW(Phdr) segments[16];
    int file = from->library;
    off_t start = from->library_offset;
    if (pread(file, &header, sizeof header, start) != sizeof header ||
        memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_phnum > 16 ||
        pread(file, segments, header.e_phnum * sizeof *segments,
              start + (off_t)header.e_phoff) != (ssize_t)(header.e_phnum * sizeof *segments))
        die("library", "not a library");
    lib.base = map_file(from, segments, header.e_phnum);
    for (int i = 0; i < header.e_phnum; i++)
        if (segments[i].p_type == PT_DYNAMIC)
            link_image(&lib, (const ElfW(Dyn) *)(lib.base + segments[i].p_vaddr));
    protect(&lib, segments, header.e_phnum);
    close(file);
    return lib;
}

static int open_file(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        die(path, "cannot open");
    return file;
}

/* What this program carries. */
static origin own_files(void)
{
    trailer end;
    int file = open_file("/proc/self/exe");
    off_t size = lseek(file, 0, SEEK_END);
    if (pread(file, &end, sizeof end, size - (off_t)sizeof end) != sizeof end ||
        memcmp(end.magic, "EFFCPACK", sizeof end.magic) != 0)
        die("runner", "carries no library: set EFFC_LIBRARY");
    int weights = end.weights_bytes > 0 ? open_file("/proc/self/exe") : -1;
    return (origin){file, weights, (off_t)end.library, (off_t)end.weights,
                    (size_t)end.weights_bytes};
}

static origin find_files(void)
{
    const char *library = getenv("EFFC_LIBRARY"), *weights = getenv("EFFC_WEIGHTS");
    if (library == NULL)
        return own_files();
    origin from = {open_file(library), -1, 0, 0, 0};
    if (weights != NULL) {
        from.weights = open_file(weights);
        from.weights_bytes = (size_t)lseek(from.weights, 0, SEEK_END);
    }
    return from;
}

/* The function whose name is a model's with a suffix; any model's if there is no name. */
static uintptr_t exported(const image *lib, const char *model, const char *suffix)
{
    for (uint32_t i = 1; i < lib->symbol_count; i++) {
        const char *name = lib->names + lib->symbols[i].st_name;
        size_t length = strlen(name), end = strlen(suffix);
        if (lib->symbols[i].st_shndx == SHN_UNDEF || length < end ||
            strcmp(name + length - end, suffix) != 0)
            continue;
        if (model == NULL || (strlen(model) == length - end && memcmp(name, model, length - end) == 0))
            return address_of(lib, i);
    }
    die("library has no function", suffix);
    return 0;
}

static origin files_of_model;

static const effc_entry *entry(void)
{
    static effc_entry loaded;
    if (loaded.info == NULL) {
        const char *name = getenv("EFFC_NAME");
        files_of_model = find_files();
        image lib = load(&files_of_model);
        loaded.create = (effc_status(*)(const effc_options *, effc_model **))exported(&lib, name,
                                                                                     "_create");
        loaded.run = (effc_status(*)(effc_model *, const effc_tensor *,
                                     const effc_tensor *))exported(&lib, name, "_run");
        loaded.variant = (const char *(*)(const effc_model *))exported(&lib, name, "_variant");
        loaded.destroy = (void (*)(effc_model *))exported(&lib, name, "_destroy");
        loaded.info = (const effc_model_info *(*)(void))exported(&lib, name, "_info");
    }
    return &loaded;
}

static const effc_model_info *info(void)
{
    return entry()->info();
}

/* Maps the file of weights, if there is one. */
static effc_status create(const effc_options *options, effc_model **model)
{
    const effc_entry *functions = entry();
    const origin *from = &files_of_model;
    effc_options all = *options;
    if (from->weights >= 0) {
        all.weights_bytes = from->weights_bytes;
        all.weights = mmap(NULL, from->weights_bytes, PROT_READ, MAP_PRIVATE, from->weights,
                           from->weights_offset);
        if (all.weights == MAP_FAILED)
            die("weights", "cannot map");
    }
    return functions->create(&all, model);
}

static effc_status run(effc_model *model, const effc_tensor *inputs, const effc_tensor *outputs)
{
    return entry()->run(model, inputs, outputs);
}

static const char *variant(const effc_model *model)
{
    return entry()->variant(model);
}

static void destroy(effc_model *model)
{
    entry()->destroy(model);
}

const effc_entry effc_runner_entry = {info, create, run, variant, destroy};
