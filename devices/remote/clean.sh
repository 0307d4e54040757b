# clean.sh SESSION NAME - empties the cache, then says "NAME 0".

rm -rf "${1%/*}/cache" && mkdir "${1%/*}/cache" || exit 1
printf '\n%s 0\n' "$2"
