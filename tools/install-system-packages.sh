#!/bin/sh
# Installs the system packages that effc's demo and tests use, where it may; otherwise says
# what to install. None is needed to compile a model: QEMU's user mode runs artifacts for Arm on
# this machine, its system emulators those for microcontrollers, a JDK makes Android packages, the
# rest is for tests of packages and archives.
set -u

missing=""
need() { # program or file, Debian package
    if ! command -v "$1" >/dev/null 2>&1 && ! [ -e "$1" ]; then missing="$missing $2"; fi
}
need qemu-aarch64 qemu-user
need qemu-arm qemu-user
need qemu-system-arm qemu-system-arm
need qemu-system-riscv32 qemu-system-misc
need gcc gcc
need /usr/include/stdlib.h libc6-dev
need arm-none-eabi-gcc gcc-arm-none-eabi
need arduino-builder arduino-builder
need javac default-jdk-headless
need cmake cmake
need pkg-config pkg-config
need adb adb
need ssh openssh-client
need mksh mksh
need busybox busybox
need toybox toybox
# Debian starts a server with this package, which nobody asked for on a desk.
[ -z "${CI:-}" ] || need /usr/sbin/sshd openssh-server
[ "$(uname -m)" = aarch64 ] ||
    need /usr/aarch64-linux-gnu/lib/ld-linux-aarch64.so.1 libc6-arm64-cross
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -z "${missing% }" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root="no"
fi

install() {
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends $missing >/dev/null
}

if [ "$as_root" != no ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing: $missing" >&2
    install 2>/dev/null && exit 0
    $as_root apt-get update -q >/dev/null && install && exit 0
fi

cat >&2 <<TEXT
effc: missing: $missing
  Please install them (these are Debian's names: sudo apt-get install $missing).
  Without QEMU what needs Arm is skipped (tests) or left out (demo); without the others tests of
  packages are skipped, and without a JDK 'effc export --as aar' does not work.
TEXT
exit 0
