"""The Helm chart, against the manifests of deploy/kubernetes and the schemas of Kubernetes."""

import json
import subprocess

import kubernetes_validate
import pytest
import yaml
from stack import ROOT, which

CHART = ROOT / "deploy" / "helm" / "rerankd"
# Labels by which Helm finds its own.
OF_HELM = {"app.kubernetes.io/managed-by", "helm.sh/chart"}
pytestmark = pytest.mark.skipif(
    not (which("helm") and which("kubectl")), reason="NOT RUN: helm or kubectl is not installed"
)


def rendered(*arguments: str, release: str = "rerankd") -> dict:
    """The manifests by kind, as they would be installed."""
    command = [which("helm"), "template", release, CHART, "--namespace", "search", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    manifests = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    for manifest in manifests.values():
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    return manifests


def refused(*arguments: str) -> str:
    command = [which("helm"), "template", "rerankd", CHART, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
    return done.stderr


def comparable(manifests: dict) -> dict:
    """Without Helm's own labels, and with settings in the order of their names."""
    copied = json.loads(json.dumps(manifests))
    for manifest in copied.values():
        labels = manifest["metadata"]["labels"]
        manifest["metadata"]["labels"] = {name: labels[name] for name in labels.keys() - OF_HELM}
    (container,) = copied["Deployment"]["spec"]["template"]["spec"]["containers"]
    container["env"].sort(key=lambda entry: entry["name"])
    return copied


def kustomized(folder: str) -> dict:
    command = [which("kubectl"), "kustomize", ROOT / "deploy" / folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}


def test_helm_finds_nothing_wrong():
    subprocess.run([which("helm"), "lint", "--strict", CHART], check=True)


@pytest.mark.parametrize(
    ("values", "folder"), [((), "kubernetes"), (("--values", str(CHART / "values-cuda.yaml")), "kubernetes-cuda")]
)
def test_the_chart_gives_what_kustomize_gives(values, folder):
    assert comparable(rendered(*values)) == comparable(kustomized(folder))


def test_the_version_is_that_of_the_server():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    cargo = (ROOT / "Cargo.toml").read_text()
    assert f'version = "{chart["version"]}"' in cargo and chart["appVersion"] == chart["version"]


def test_settings_become_variables():
    settings = {"model": "/data/mine", "max_queue_tokens": 4294967296, "offline": True, "trace_sample_percent": 0.5}
    deployment = rendered("--set-json", f"settings={json.dumps(settings)}")["Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    found = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert found["RERANKD_MODEL"] == "/data/mine"
    assert found["RERANKD_MAX_QUEUE_TOKENS"] == "4294967296"
    assert found["RERANKD_OFFLINE"] == "true"
    assert found["RERANKD_TRACE_SAMPLE_PERCENT"] == "0.5"


def test_the_grace_period_follows_the_settings():
    deployment = rendered("--set", "settings.grace=20s,settings.drain_timeout=100s")["Deployment"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 130


def test_parts_can_be_left_out():
    left_out = ("autoscaling", "networkPolicy", "serviceMonitor")
    switches = [f"{name}.enabled=false" for name in left_out]
    manifests = rendered("--set", ",".join(["apiKeysSecret=", "data.emptyDir=null", "data.hostPath.path=/srv", *switches]))
    assert set(manifests) == {"Deployment", "Service", "PodDisruptionBudget"}
    spec = manifests["Deployment"]["spec"]
    assert spec["replicas"] == 2
    assert spec["template"]["spec"]["volumes"] == [{"name": "data", "hostPath": {"path": "/srv"}}]
    assert not any("API_KEYS" in entry["name"] for entry in spec["template"]["spec"]["containers"][0]["env"])


def test_two_releases_do_not_select_each_other():
    first, second = (rendered(release=release) for release in ("fast", "precise"))
    for manifests, release in ((first, "fast"), (second, "precise")):
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"):
            assert f'{{"app.kubernetes.io/name": "{release}"}}' in json.dumps(manifests[kind]["spec"]), kind
        assert all(manifest["metadata"]["name"] == release for manifest in manifests.values())
        assert manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == release


@pytest.mark.parametrize(
    "values", ["grace=10s", "settings.grace=1m", "settings.listen=0.0.0.0:80", "settings.Model=x", "replicas=0"]
)
def test_values_that_mean_nothing_are_refused(values):
    name = values.split("=")[0].split(".")[-1]
    assert f"/{name}'" in refused("--set", values) or f"'{name}'" in refused("--set", values)
