#!/bin/sh
# Installs the system packages that effc's demo and tests use, where it may; otherwise says
# what to install. Only QEMU's user mode is needed, to run artifacts for Arm on this machine.
set -u

missing=""
for program in qemu-aarch64 qemu-arm; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    as_root="no"
fi

if [ "$as_root" != no ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing qemu-user (for:$missing)" >&2
    if ! $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends qemu-user >/dev/null 2>&1; then
        $as_root apt-get update -q >/dev/null &&
            $as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -q --no-install-recommends qemu-user >/dev/null
    fi
    command -v qemu-aarch64 >/dev/null 2>&1 && exit 0
fi

cat >&2 <<TEXT
effc: missing:$missing
  They run artifacts for Arm on this machine. Please install them:
    Debian, Ubuntu:  sudo apt-get install qemu-user
    Fedora:          sudo dnf install qemu-user
    Arch:            sudo pacman -S qemu-user
  Without them what needs Arm is skipped (tests) or left out (demo).
TEXT
exit 0
