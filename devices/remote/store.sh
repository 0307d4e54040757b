# store.sh SESSION NAME { keep|private HASH FILE }... - checks what was pushed to SESSION/.in and puts it in place.
#
# keep: the content is SESSION/.in/HASH (or already in the cache), goes to the cache, and FILE
# becomes a link to it. private: it is SESSION/.in/FILE. Says "NAME CODE"; 3: a content is damaged.

session=$1
name=$2
shift 2
cache=${session%/*}/cache
cd "$session/.in" || exit 1

finish() {
    printf '\n%s %s\n' "$name" "$1"
    exit
}

check() { # file, hash
    sum=$(sha256sum "$1") || finish 2
    [ "${sum%% *}" = "$2" ] || finish 3
    chmod 700 "$1" || finish 2
}

while [ $# -ge 3 ]; do
    if [ "$1" = private ]; then
        check "$3" "$2"
        mv -f "$3" "$session/$3" || finish 2
    else
        if [ -f "$2" ]; then
            check "$2" "$2"
            touch "$2" # transfers keep old dates
            mv -f "$2" "$cache/$2" || finish 2
        fi
        [ -f "$cache/$2" ] || finish 3
        ln -sf "$cache/$2" "$session/$3" || finish 2
    fi
    shift 3
done
finish 0
