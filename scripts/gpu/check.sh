#!/bin/sh
# Checks rerankd on a machine with an NVIDIA GPU. Needs a driver for CUDA 13 and a Python with torch for CUDA 13;
# no network and no toolchain.
#
#   check.sh [--unpack] [--report FOLDER] [--only STEP,...]
#
# Unpacks the parts of the bundle that lie beside it into $CHECK_FOLDER (/tmp/rerankd-check by default), and runs
# them: parts that were unpacked before may be missing. --unpack does nothing else. The report is report.md and
# report.json in FOLDER (./report by default). $PYTHON names the Python with torch.
#
# Exit codes: 0 everything passed; 1 something failed; 2 there is no GPU, or no torch to compare with; 3 a part
# of the bundle is missing, or the command line is wrong.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
CHECK_FOLDER=${CHECK_FOLDER:-/tmp/rerankd-check}
export CHECK_FOLDER
mkdir -p "$CHECK_FOLDER"
for part in onnxruntime app model; do
    if [ -f "$here/$part.tar.xz" ] && [ ! -f "$CHECK_FOLDER/$part.unpacked" ]; then
        "$python" -m tarfile -e "$here/$part.tar.xz" "$CHECK_FOLDER"
        touch "$CHECK_FOLDER/$part.unpacked"
    fi
    if [ ! -f "$CHECK_FOLDER/$part.unpacked" ] && [ "${1:-}" != --unpack ]; then
        echo "check.sh: $part.tar.xz is missing; put it beside check.sh" >&2
        exit 3
    fi
done
[ "${1:-}" != --unpack ] || exit 0
exec "$python" "$CHECK_FOLDER/check.py" "$@"
