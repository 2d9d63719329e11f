#!/bin/sh
# What the image holds, made in the folder of the sources: .venv with what services need, and the
# hot modules compiled. The Dockerfile runs this, and so does deploy/try_image.sh.
#
#   deploy/image/build.sh [PYTHON]
set -eu
cd "$(dirname "$0")/../.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONSTRAINT="$PWD/requirements.lock" PIP_BUILD_CONSTRAINT="$PWD/requirements.lock"

"${1:-python3}" -m venv .venv
# Compiled modules lie beside their sources, which therefore stay where they are.
.venv/bin/pip install --quiet --config-settings editable_mode=compat -e .

# The compiler of the modules goes into a folder of its own, and with it.
.venv/bin/pip install --quiet --target build/tools mypy setuptools
PYTHONPATH="$PWD/build/tools" .venv/bin/python compile.py
.venv/bin/python -P -c 'import services.core.wire as made; assert made.__file__.endswith(".so")' ||
    { echo "nothing was compiled: the image would be slow" >&2; exit 1; }
rm -rf build

# Nobody can write there later, so what Python keeps of each module is made now.
.venv/bin/python -m compileall -q .venv/lib services migrations web
.venv/bin/pip uninstall --quiet --yes pip setuptools
