#!/usr/bin/env python3
"""Names what the released binary is made of: a bill of materials, and the licenses of all of it.

    components.py FOLDER [--machine x86_64|aarch64]

Writes `rerankd.cdx.json` (CycloneDX 1.5) and `THIRD-PARTY-NOTICES` into FOLDER. Counted are the crates
that are linked: not those of tests, of build scripts, or that run in the compiler. ONNX Runtime's
library, license and notices are expected in `target/onnxruntime`, as `make onnxruntime` leaves them,
or in the folder that `--onnxruntime` names.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "rerankd"
LICENSE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
NOTICES = ("LICENSE.onnxruntime", "NOTICES.onnxruntime")
# What a build script packs into the binary: Swagger UI.
EMBEDDED = ("utoipa-swagger-ui-vendored",)


@dataclasses.dataclass(frozen=True)
class Component:
    """A crate from the registry, Rust's standard library, or ONNX Runtime."""

    name: str
    version: str
    license: str
    origin: str
    purl: str
    # Of the crate as published, or of the library; empty where there is no such file.
    sha256: str
    # Texts of its licenses, by file name.
    texts: dict[str, str] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True)
class Materials:
    """What is linked, and who needs whom; the crates of this repository count as one."""

    version: str
    components: list[Component]
    # From a purl, or PACKAGE, to the purls that it needs.
    needs: dict[str, list[str]]


def source_time() -> int:
    """Seconds since 1970 of the commit, or of SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    command = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def materials(machine: str, onnxruntime: Path) -> Materials:
    """What the default features of the package link on `machine`."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    platform_filter = ["--filter-platform", f"{machine}-unknown-linux-gnu"]
    done = subprocess.run([*command, *platform_filter], cwd=ROOT, check=True, capture_output=True, text=True)
    metadata = json.loads(done.stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    (root,) = (package for package in packages.values() if package["name"] == PACKAGE)
    checksums = locked_checksums()

    def linked(package_id: str) -> list[str]:
        return [
            dependency["pkg"]
            for dependency in nodes[package_id]["deps"]
            if (
                any(kind["kind"] is None for kind in dependency["dep_kinds"])
                or packages[dependency["pkg"]]["name"] in EMBEDDED
            )
            and not any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
        ]

    def name_of(package_id: str) -> str:
        package = packages[package_id]
        return PACKAGE if package["source"] is None else f"pkg:cargo/{package['name']}@{package['version']}"

    found: dict[str, Component] = {}
    needs: dict[str, set[str]] = defaultdict(set)
    seen, waiting = set(), [root["id"]]
    while waiting:
        package_id = waiting.pop()
        if package_id in seen:
            continue
        seen.add(package_id)
        package, name = packages[package_id], name_of(package_id)
        if package["source"] is not None:
            found[name] = crate(package, packages.values(), name, checksums[package["name"], package["version"]])
        children = linked(package_id)
        needs[name] |= {name_of(child) for child in children} - {name}
        waiting += children

    others = [onnx_runtime(onnxruntime), standard_library()]
    needs[PACKAGE] |= {other.purl for other in others}
    components = sorted([*found.values(), *others], key=lambda component: component.purl)
    return Materials(root["version"], components, {name: sorted(needs[name]) for name in sorted(needs)})


def locked_checksums() -> dict[tuple[str, str], str]:
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(entry["name"], entry["version"]): entry.get("checksum", "") for entry in lock["package"]}


def license_texts(package: dict) -> dict[str, str]:
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.rglob("*") if path.is_file() and LICENSE_FILE.match(path.name))
    return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in files}


def crate(package: dict, packages: Iterable[dict], purl: str, sha256: str) -> Component:
    """A crate without its license's text has that of another one of `packages` from its repository."""
    source = (package["repository"], package["license"])
    siblings = [other for other in packages if None not in source and (other["repository"], other["license"]) == source]
    texts = next(filter(None, map(license_texts, [package, *siblings])), {})
    # Older crates separate alternatives by a slash, which is no SPDX expression.
    expression = re.sub(r"\s*/\s*", " OR ", package["license"] or "")
    if not expression or not (texts or "Apache-2.0" in expression):
        sys.exit(f"{purl} has no license, or none whose text is known; nor has another crate of its repository")
    origin = package["repository"] or f"https://crates.io/crates/{package['name']}"
    return Component(package["name"], package["version"], expression, origin, purl, sha256, texts)


def onnx_runtime(folder: Path) -> Component:
    library = (folder / "libonnxruntime.so").resolve()
    if not library.exists() or not all((folder / name).exists() for name in NOTICES):
        sys.exit(f"`{folder}` lacks ONNX Runtime or its notices; hint: run `make onnxruntime`")
    version = library.name.removeprefix("libonnxruntime.so.")
    texts = {name: (folder / name).read_text(errors="replace") for name in NOTICES}
    sha256 = hashlib.sha256(library.read_bytes()).hexdigest()
    origin = "https://github.com/microsoft/onnxruntime"
    return Component("onnxruntime", version, "MIT", origin, f"pkg:pypi/onnxruntime@{version}", sha256, texts)


def standard_library() -> Component:
    done = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True)
    version = re.search(r"^release: (.*)$", done.stdout, re.MULTILINE)[1]
    origin = "https://github.com/rust-lang/rust"
    return Component("rust-std", version, "MIT OR Apache-2.0", origin, f"pkg:generic/rust-std@{version}", "", {})


def bill_of_materials(made_of: Materials) -> dict:
    """The CycloneDX document."""
    time = datetime.datetime.fromtimestamp(source_time(), datetime.UTC)
    components = [
        {
            "type": "library",
            "bom-ref": component.purl,
            "name": component.name,
            "version": component.version,
            **({"hashes": [{"alg": "SHA-256", "content": component.sha256}]} if component.sha256 else {}),
            "licenses": [{"expression": component.license}],
            "purl": component.purl,
            "externalReferences": [{"type": "vcs", "url": component.origin}],
        }
        for component in made_of.components
    ]
    own = {
        "type": "application",
        "bom-ref": PACKAGE,
        "name": PACKAGE,
        "version": made_of.version,
        "licenses": [{"expression": "Apache-2.0"}],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": own},
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": needed} for name, needed in made_of.needs.items()],
    }


def notices(made_of: Materials) -> str:
    """Every license text once, under the names of all to which it applies."""
    listed = [f"{component.name} {component.version}: {component.license}" for component in made_of.components]
    without = [component.name for component in made_of.components if not component.texts]
    owners: dict[str, list[str]] = defaultdict(list)
    for component in made_of.components:
        for name, text in component.texts.items():
            owners[text.replace("\r\n", "\n").strip()].append(f"{component.name} {component.version} ({name})")
    parts = [
        "rerankd contains or comes with the following software. Their licenses follow the list.",
        "\n".join(listed),
        "Here without a copy of their license, which is Apache-2.0 as in LICENSE, "
        f"also by choice: {', '.join(without)}.",
    ]
    for text, names in sorted(owners.items(), key=lambda item: item[1]):
        parts.append("=" * 80 + "\n" + "\n".join(names) + "\n" + "-" * 80 + "\n" + text)
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", default=platform.machine(), choices=["x86_64", "aarch64"])
    parser.add_argument("--onnxruntime", type=Path, default=ROOT / "target/onnxruntime")
    arguments = parser.parse_args()
    made_of = materials(arguments.machine, arguments.onnxruntime)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bill = json.dumps(bill_of_materials(made_of), indent=1) + "\n"
    (arguments.folder / "rerankd.cdx.json").write_text(bill)
    (arguments.folder / "THIRD-PARTY-NOTICES").write_text(notices(made_of))


if __name__ == "__main__":
    main()
