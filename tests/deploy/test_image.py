"""`make image-push` and `make image-join`: what docker is told, and what lies in a registry on this machine afterwards.

Building needs an engine, which is not started here; logging in and joining do not.
"""

import hashlib
import json
import os
import subprocess
import urllib.request

import pytest
from stack import ROOT, free_port, get, wait_until, which

TOKEN = "secret of the registry"
# What `htpasswd -nbB` makes of it.
HASHED = "$2b$04$sm7zdtilQLWPIYmXg1.aUO4Y2if9ANJ9ObkcNvqgSOt4IDbFjDDUe"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def make(*words: str, **environment: str) -> subprocess.CompletedProcess:
    given = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    given |= {"REGISTRY_USER": "someone", "REGISTRY_TOKEN": TOKEN, **environment}
    return subprocess.run(["make", *words], cwd=ROOT, env=given, capture_output=True, text=True)


@pytest.mark.parametrize("builder_exists", [True, False])
def test_what_docker_is_told_to_push(tmp_path, builder_exists):
    docker, told, typed = (tmp_path / name for name in ("docker", "told", "typed"))
    docker.write_text(f"""#!/bin/sh
echo "$@" >> {told}
case "$1 $2" in
    "login --username") cat > {typed} ;;
    "buildx inspect") exit {0 if builder_exists else 1} ;;
esac
""")
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = make("image-push", "IMAGE=registry.example/team/rerankd", "TAG=0.1.0-amd64", PATH=path)
    assert done.returncode == 0, done.stderr
    revision = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True).strip()
    create = [] if builder_exists else ["buildx create --name rerankd --driver docker-container"]
    assert told.read_text().splitlines() == [
        "login --username someone --password-stdin registry.example",
        "buildx inspect rerankd",
        *create,
        "buildx build --builder rerankd --push --provenance=mode=max --sbom=true --tag registry.example/team/rerankd:0.1.0-amd64 "
        f"--build-arg VERSION=0.1.0-amd64 --build-arg REVISION={revision} .",
    ]
    assert typed.read_text() == TOKEN
    assert TOKEN not in done.stdout + done.stderr


class Registry:
    """Debian's registry, which asks for a password."""

    def __init__(self, folder):
        self.host = f"127.0.0.1:{free_port()}"
        (folder / "users").write_text(f"someone:{HASHED}\n")
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
            "http": {"addr": self.host},
            "auth": {"htpasswd": {"realm": "test", "path": str(folder / "users")}},
        }
        (folder / "settings.yml").write_text(json.dumps(settings))
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        passwords.add_password(None, f"http://{self.host}/", "someone", TOKEN, is_authenticated=True)
        self.opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
        self.process = subprocess.Popen([which("docker-registry"), "serve", folder / "settings.yml"])

    def ask(self, method: str, place: str, content: bytes | None = None, **headers: str):
        url = place if place.startswith("http") else f"http://{self.host}/v2/team/rerankd/{place}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.opener.open(urllib.request.Request(url, content, headers, method=method))

    def put_blob(self, content: bytes) -> dict:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        upload = self.ask("POST", "blobs/uploads/", b"").headers["Location"]
        self.ask("PUT", f"{upload}&digest={digest}", content, Content_Type="application/octet-stream")
        return {"digest": digest, "size": len(content)}

    def put_manifest(self, name: str, manifest: dict) -> dict:
        content = json.dumps({"schemaVersion": 2, **manifest}).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.ask("PUT", f"manifests/{name or digest}", content, Content_Type=manifest["mediaType"])
        return {"mediaType": manifest["mediaType"], "digest": digest, "size": len(content)}

    def put_image(self, tag: str, architecture: str) -> None:
        """As BuildKit pushes one: an index of the image and of a statement about it."""

        def put(configuration: dict, layer_type: str, layer: bytes) -> dict:
            config = self.put_blob(json.dumps(configuration).encode())
            config["mediaType"] = "application/vnd.oci.image.config.v1+json"
            layers = [{"mediaType": layer_type, **self.put_blob(layer)}]
            return self.put_manifest("", {"mediaType": MANIFEST, "config": config, "layers": layers})

        image = put({"os": "linux", "architecture": architecture}, "application/vnd.oci.image.layer.v1.tar", architecture.encode())
        statement = put({"os": "unknown", "architecture": "unknown"}, "application/vnd.in-toto+json", json.dumps({"subject": image["digest"]}).encode())
        about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image["digest"]}
        entries = [
            {**image, "platform": {"os": "linux", "architecture": architecture}},
            {**statement, "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": about},
        ]
        self.put_manifest(tag, {"mediaType": INDEX, "manifests": entries})


@pytest.fixture
def registry(tmp_path):
    folders = ("/usr/libexec", "/usr/lib", "/usr/local/libexec", "/usr/local/lib")
    buildx = any(os.path.exists(f"{folder}/docker/cli-plugins/docker-buildx") for folder in folders)
    if not (which("docker") and buildx and which("docker-registry")):
        pytest.skip("NOT RUN: docker with buildx or docker-registry is not installed")
    started = Registry(tmp_path)
    try:
        wait_until(lambda: get(f"http://{started.host}/v2/")[0] == 401, 30, "the registry")
        yield started
    finally:
        started.process.terminate()
        started.process.wait(30)


def test_joining_gives_one_name_to_both_architectures(registry, tmp_path):
    for architecture in ("amd64", "arm64"):
        registry.put_image(f"0.1.0-{architecture}", architecture)
    image = (f"IMAGE={registry.host}/team/rerankd", "TAG=0.1.0")
    done = make("image-join", *image, DOCKER_CONFIG=str(tmp_path / "docker"))
    assert done.returncode == 0, done.stderr
    joined = json.load(registry.ask("GET", "manifests/0.1.0", Accept=INDEX))["manifests"]
    images = {entry["digest"]: entry["platform"]["architecture"] for entry in joined if entry["platform"]["os"] == "linux"}
    assert sorted(images.values()) == ["amd64", "arm64"]
    statements = [entry["annotations"] for entry in joined if entry["digest"] not in images]
    assert {statement["vnd.docker.reference.digest"] for statement in statements} == set(images)

    refused = make("image-join", *image, DOCKER_CONFIG=str(tmp_path / "other"), REGISTRY_TOKEN="wrong")
    assert refused.returncode != 0 and "401" in refused.stderr
