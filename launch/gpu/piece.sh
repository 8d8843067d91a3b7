# Read by the scripts beside it: sh launch/gpu/NAME.sh MINUTES [OVERRIDES] runs launch/NAME.sh for so long.
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/../.venv/bin:$PATH" # for a Python; the series looks for itself
[ $# -gt 0 ] || {
    echo "$0 takes the minutes of the piece, then overrides" >&2
    exit 2
}
minutes=$1
shift

series() { # NAME [OVERRIDES]
    name=$1
    shift
    exec python3 "$here/gpu/piece.py" "$minutes" sh "$here/$name.sh" "$@"
}
