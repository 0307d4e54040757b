"""Small stand-ins for what firmware packages are built in, so that they run on this machine.

An Arduino platform (boards.txt, platform.txt, core) whose compiler is this machine's, and the
part of Zephyr's CMake functions and headers that a module meets.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ARDUINO_H", "BARE_CORE", "arduino_platform", "zephyr_world"]

_BOARDS = """\
host.name=This machine
host.build.core=plain
host.build.board=HOST
host.build.mcu=host
host.upload.maximum_size=100000000
"""
_PLATFORM = """\
name=Effc test platform
version=1.0.0
flags=-O1 -Wall -Wextra -Werror
recipe.c.o.pattern=gcc -std=gnu11 {flags} {includes} -c "{source_file}" -o "{object_file}"
recipe.cpp.o.pattern=g++ -std=gnu++17 {flags} {includes} -c "{source_file}" -o "{object_file}"
recipe.ar.pattern=ar rcs "{archive_file_path}" "{object_file}"
recipe.c.combine.pattern=g++ -o "{build.path}/{build.project_name}.elf" {object_files} \
"{archive_file_path}" -lm
recipe.objcopy.hex.pattern=true
recipe.preproc.macros=g++ {includes} -x c++ -E -CC "{source_file}" -o "{preprocessed_file_path}"
recipe.size.pattern=true
tools.ctags.cmd.path=arduino-ctags
tools.ctags.pattern="{cmd.path}" -u --language-force=c++ -f - --c++-kinds=svpf \
--fields=KSTtzns --line-directives "{source_file}"
""".replace("\\\n", "")
ARDUINO_H = """\
#pragma once
#include <stdint.h>
struct Port {
  void begin(long) {}
  void print(const char *);
  void print(char);
  void print(double);
  void println(const char *);
  void println(unsigned long);
};
extern Port Serial;
unsigned long micros();
void delay(unsigned long);
void setup();
void loop();
"""
_CORE = """\
#include "Arduino.h"
#include <stdio.h>
#include <stdlib.h>
Port Serial;
void Port::print(const char *text) { printf("%s", text); }
void Port::print(char c) { putchar(c); }
void Port::print(double x) { printf("%.9g", x); }
void Port::println(const char *text) { printf("%s\\n", text); }
void Port::println(unsigned long) { printf("-\\n"); }
unsigned long micros() { return 0; }
void delay(unsigned long) { exit(0); }
int main() {
  setup();
  for (;;)
    loop();
}
"""
BARE_CORE = """\
#include "Arduino.h"
Port Serial;
void Port::print(const char *) {}
void Port::print(char) {}
void Port::print(double) {}
void Port::println(const char *) {}
void Port::println(unsigned long) {}
unsigned long micros() { return 0; }
void delay(unsigned long) {}
extern "C" void *memset(void *to, int value, __SIZE_TYPE__ bytes) {
  for (char *t = (char *)to; bytes > 0; bytes--)
    *t++ = (char)value;
  return to;
}
extern "C" void _start() {
  setup();
  for (;;)
    loop();
}
"""
"""A core for a program without a C library."""


def arduino_platform(hardware: Path) -> None:
    """Write ``hardware/effc/test``, what ``arduino-builder -hardware`` is given.

    Its board is ``effc:test:host``.
    """
    folder = hardware / "effc" / "test"
    (folder / "cores" / "plain").mkdir(parents=True)
    (folder / "boards.txt").write_text(_BOARDS)
    (folder / "platform.txt").write_text(_PLATFORM)
    (folder / "cores" / "plain" / "Arduino.h").write_text(ARDUINO_H)
    (folder / "cores" / "plain" / "main.cpp").write_text(_CORE)


_ZEPHYR_CMAKE = """\
cmake_minimum_required(VERSION 3.13)
project(world C)
add_library(zephyr_interface INTERFACE)
add_executable(app {sample}/src/main.c)
target_include_directories(app PRIVATE include)
target_link_libraries(app PRIVATE zephyr_interface m)
target_compile_options(app PRIVATE -Wall -Wextra -Werror)
function(zephyr_include_directories)
  target_include_directories(zephyr_interface INTERFACE ${{ARGN}})
endfunction()
macro(zephyr_library_named name)
  set(ZEPHYR_CURRENT_LIBRARY ${{name}})
  add_library(${{name}} STATIC)
  target_link_libraries(${{name}} PUBLIC zephyr_interface)
  target_link_libraries(app PRIVATE ${{name}})
endmacro()
macro(zephyr_library_sources)
  target_sources(${{ZEPHYR_CURRENT_LIBRARY}} PRIVATE ${{ARGN}})
endmacro()
function(zephyr_library_import name path)
  message(STATUS "imported ${{name}} from ${{path}}")
endfunction()
add_subdirectory({module}/zephyr module)
"""
_KERNEL_H = """\
#include <stdint.h>
static inline uint32_t k_cycle_get_32(void) { return 0; }
"""
_PRINTK_H = "#include <stdio.h>\n#define printk printf\n"


def zephyr_world(folder: Path, module: Path, sample: Path) -> None:
    """Write a CMake project that builds a module and its sample as Zephyr's build would."""
    (folder / "include" / "zephyr" / "sys").mkdir(parents=True)
    text = _ZEPHYR_CMAKE.format(module=module, sample=sample)
    (folder / "CMakeLists.txt").write_text(text)
    (folder / "include" / "zephyr" / "kernel.h").write_text(_KERNEL_H)
    (folder / "include" / "zephyr" / "sys" / "printk.h").write_text(_PRINTK_H)
