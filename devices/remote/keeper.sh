# keeper.sh BASE NAME - lives as long as a session. When its standard input ends, whatever the
# reason (the client closed it, was killed, or the connection broke), it ends the session's programs
# and removes the session's folder. Before, it does so for sessions whose keeper has died, as in a
# reboot.
#
# BASE: folder for everything of effc, with the user's number behind it; empty: below the user's
# cache. NAME: of the session. Says "NAME ready FOLDER" and, after the removal, "NAME closed".

umask 077
trap '' HUP INT PIPE # there may be nobody left to complain to
base=${1:+$1-$(id -u)}
base=${base:-${XDG_CACHE_HOME:-$HOME/.cache}/effc/device}
name=$2

# After the renaming no program can be added (run.sh writes its number before it starts). Numbers
# are used again: a program of the session is one that works in its folder.
end_session() {
    gone=${1%.end}.end
    [ "$1" = "$gone" ] || mv "$1" "$gone" || return
    for file in "$gone"/.pid.*; do
        pid=${file##*.}
        [ "$(readlink "/proc/$pid/cwd")" = "$gone" ] || continue
        kill -9 "-$pid" 2>/dev/null || kill -9 "$pid"
    done
    rm -rf "$gone" || { sleep 1 && rm -rf "$gone"; } # a dying program may still have written
}

# Whether process $1 is the keeper of session $2.
is_kept() {
    case "$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline")" in
    *"$2"*) return 0 ;;
    esac
    return 1
}

mkdir -p "$base/cache" && base=$(cd "$base" && pwd -P) || exit 1
for folder in "$base"/run.*; do
    owner=${folder##*/run.}
    owner=${owner%.end}
    if [ -d "$folder" ] && ! is_kept "${owner#*.}" "${owner%.*}"; then end_session "$folder"; fi
done
find "$base/cache" -type f -mtime +7 -exec rm -f {} +

session=$base/run.$name.$$
mkdir "$session" "$session/.in" || exit 1
trap 'end_session "$session"; exit 1' TERM
printf '\n%s ready %s\n' "$name" "$session"
while read -r _; do :; done
end_session "$session"
echo "$name closed"
