#!/bin/sh
# Make a virtual environment with a Python that Triton's wheel supports:
#
#     make_venv.sh FOLDER [PYTHON]
#
# The wheel needs NumPy 1.26, which has wheels for Python 3.10 to 3.12, has to be compiled for 3.13, and does not
# support 3.14. Without PYTHON: the newest of 3.10 to 3.12 on PATH, else 3.13 where there is a compiler, else uv's 3.12.
set -eu

fail() {
    echo "error: $1" >&2
    exit 1
}

runs() { "$@" >/dev/null 2>&1; }

version() { # of the interpreter $1; nothing if it does not start, as pyenv's shims of versions that are not selected
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

compiles() { # whether extension modules can be compiled for the interpreter $1
    runs cc --version && runs c++ --version &&
        runs "$1" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
}

fault() { # why the interpreter $1 cannot be used; nothing if it can
    case $(version "$1") in
    3.10 | 3.11 | 3.12) ;;
    3.13) compiles "$1" || echo "NumPy 1.26 has to be compiled for Python 3.13: install a C++ compiler and Python.h" ;;
    "") echo "it does not start" ;;
    *) echo "Triton's wheel needs Python 3.10 to 3.13" ;;
    esac
    runs "$1" -c 'import ensurepip' || echo "it lacks ensurepip: on Debian and Ubuntu, install python3-venv"
}

choose() { # the name of an interpreter that can be used; nothing if there is none
    for wanted in 3.12 3.11 3.10 3.13; do
        for python in "python$wanted" python3 python; do
            if [ "$(version "$python")" = "$wanted" ] && [ -z "$(fault "$python")" ]; then
                echo "$python"
                return
            fi
        done
    done
}

use_uv() { # make the environment $1 with a Python 3.12 that uv downloads; uv comes from PyPI if it is not on PATH
    uv=uv
    if ! runs uv --version; then
        uv_home=$(mktemp -d)
        trap 'rm -rf "$uv_home"' EXIT
        if ! runs python3 -m venv "$uv_home"; then
            echo "python3 -m venv fails: on Debian and Ubuntu, install python3-venv"
            return 1
        fi
        "$uv_home/bin/pip" install --quiet --disable-pip-version-check uv || return
        uv=$uv_home/bin/uv
    fi
    "$uv" venv --quiet --seed --python 3.12 "$1"
}

venv=$1 python=${2-}
if [ -z "$python" ]; then
    python=$(choose)
elif reason=$(fault "$python" | head -n 1) && [ -n "$reason" ]; then
    fail "$python cannot be used: $reason"
fi
if [ -n "$python" ]; then
    exec "$python" -m venv "$venv"
fi
if ! said=$(use_uv "$venv" 2>&1); then
    reason=$(echo "$said" | head -n 2 | paste -s -d ' ' -) # an error of uv, and its cause
    fail "no Python 3.10 to 3.12 was found, and uv did not install one ($reason); install one and set PYTHON to it"
fi
