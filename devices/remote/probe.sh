# probe.sh SESSION NAME - prints what the system tells about the device, in parts headed "== PART", then "NAME 0".
# What a system lacks, or keeps from this user, stays empty.

exec 2>/dev/null
part() { printf '\n== %s\n' "$1"; }

part machine
uname -m
part system
uname -s
uname -r
part cpuinfo
cat /proc/cpuinfo
part memory
cat /proc/meminfo
part storage
df -k "$1"
part cores
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    [ -d "$cpu" ] || continue
    midr=$(cat "$cpu/regs/identification/midr_el1")
    khz=$(cat "$cpu/cpufreq/cpuinfo_max_freq")
    echo "${cpu##*/cpu} ${midr:--} ${khz:--}"
done
part caches
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
    for index in "$cpu"/cache/index*; do
        [ -d "$index" ] && echo "${cpu##*/cpu} $(cat "$index/level") $(cat "$index/type") $(cat "$index/size")"
    done
done
part properties
command -v getprop >/dev/null && getprop
part model
tr '\0' '\n' </proc/device-tree/model || cat /sys/class/dmi/id/product_name
part release
cat /etc/os-release
part gpu
cat /sys/class/kgsl/kgsl-3d0/gpu_model || cat /sys/class/misc/mali0/device/gpuinfo
command -v dumpsys >/dev/null && dumpsys SurfaceFlinger | grep -m 1 'GLES:'
cat /sys/class/drm/card*/device/uevent | grep '^DRIVER='

printf '\n%s 0\n' "$2"
