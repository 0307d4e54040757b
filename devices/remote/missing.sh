# missing.sh SESSION NAME HASH... - says which contents the cache lacks, then "NAME 0". What it has
# is marked as used, so that it is kept.

cache=${1%/*}/cache
name=$2
shift 2
for hash in "$@"; do
    if [ -f "$cache/$hash" ]; then touch "$cache/$hash"; else echo "$hash"; fi
done
printf '\n%s 0\n' "$name"
