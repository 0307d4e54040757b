# run.sh SESSION NAME SECONDS INPUT COMMAND... - runs a command in a session's folder, for at most SECONDS.
#
# INPUT: file for the command's standard input. Says "NAME CODE" in a line of its own behind the
# command's output; without that line the connection broke, or the session has ended.

session=$1
name=$2
seconds=$3
input=$4
shift 4
trap '' HUP INT
cd "$session" || exit 1

# The number of the program is on disk before it starts: the keeper ends it, with what it has
# started where there is setsid.
$(command -v setsid) sh -c 'echo >"$0/.pid.$$" && exec "$@"' "$session" "$@" <"$input" &
program=$!
trap '' PIPE # the client may have gone; what follows is still to be done
(
    trap 'kill -9 $! 2>/dev/null; exit 0' TERM
    sleep "$seconds" &
    wait $!
    kill -9 "-$program" || kill -9 "$program"
) </dev/null >/dev/null 2>&1 &
watch=$!
wait "$program"
code=$?
kill "$watch" 2>/dev/null
rm -f "$session/.pid.$program"
printf '\n%s %s\n' "$name" "$code"
