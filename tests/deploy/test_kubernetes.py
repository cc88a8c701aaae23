"""The manifests, against the schemas of Kubernetes and against each other."""

import json
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from stack import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
KUSTOMIZATION = MANIFESTS.pop("kustomization.yaml")
# Of the Prometheus operator, not of Kubernetes.
MONITOR = MANIFESTS.pop("servicemonitor.yaml")
DEPLOYMENT = MANIFESTS["deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
OPERATOR = "@kubernetes-models/prometheus-operator@6.0.0"
VALIDATE = """
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
new ServiceMonitor(JSON.parse(process.argv[1])).validate();
"""


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_what_kubernetes_takes(name):
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_a_wrong_manifest_is_noticed():
    wrong = json.loads(json.dumps(DEPLOYMENT))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """A folder with the schemas of the Prometheus operator."""
    if not shutil.which("npm"):
        pytest.skip("NOT RUN: npm is not installed, which the schema of ServiceMonitor comes with")
    folder = tmp_path_factory.mktemp("operator")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", OPERATOR]
    subprocess.run(install, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("valid", [True, False])
def test_service_monitor_is_what_the_operator_takes(operator, valid):
    monitor = json.loads(json.dumps(MONITOR))
    if not valid:
        monitor["spec"]["endpoints"][0]["interval"] = 15
    command = ["node", "--input-type=module", "--eval", VALIDATE, json.dumps(monitor)]
    done = subprocess.run(command, cwd=operator, capture_output=True, text=True)
    assert (done.returncode == 0) == valid, done.stderr


def test_kustomization_names_every_manifest():
    assert set(KUSTOMIZATION["resources"]) == {*MANIFESTS, "servicemonitor.yaml"}
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [CONTAINER["image"]]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="NOT RUN: kubectl is not installed, which puts the manifests together")
def test_kustomization_is_put_together():
    done = subprocess.run(["kubectl", "kustomize", FOLDER], check=True, capture_output=True, text=True)
    made = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert set(made) == {manifest["kind"] for manifest in (*MANIFESTS.values(), MONITOR)}
    assert {manifest["metadata"]["namespace"] for manifest in made.values()} == {KUSTOMIZATION["namespace"]}
    made.pop("ServiceMonitor")
    for manifest in made.values():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_everything_selects_the_pods():
    labels = POD["metadata"]["labels"]
    policy = MANIFESTS["networkpolicy.yaml"]["spec"]
    for selector in [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        MANIFESTS["service.yaml"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
    ]:
        assert selector == labels
    assert MONITOR["spec"]["selector"]["matchLabels"] == MANIFESTS["service.yaml"]["metadata"]["labels"]
    target = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", DEPLOYMENT["metadata"]["name"])


def test_ports_have_one_name():
    (port,) = CONTAINER["ports"]
    (service,) = MANIFESTS["service.yaml"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    assert MONITOR["spec"]["endpoints"][0]["port"] == service["name"]
    for rule in MANIFESTS["networkpolicy.yaml"]["spec"]["ingress"]:
        assert rule["ports"] == [{"port": port["name"]}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == port["name"]


def test_times_fit_into_each_other():
    settings = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    grace, drain = (int(settings[name].rstrip("s")) for name in ("RERANKD_GRACE", "RERANKD_DRAIN_TIMEOUT"))
    probe = CONTAINER["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"] < grace
    assert grace + drain < POD["spec"]["terminationGracePeriodSeconds"]


def test_keys_are_where_the_server_looks():
    settings = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    places = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert settings["RERANKD_API_KEYS_FILE"] == f"{places['keys']}/keys"
    assert set(places) == {volume["name"] for volume in POD["spec"]["volumes"]}


def test_settings_are_settings():
    documented = (ROOT / "docs" / "configuration.md").read_text()
    for entry in CONTAINER["env"]:
        assert f"`{entry['name']}`" in documented, entry["name"]


def test_the_pod_is_locked_down():
    user = POD["spec"]["securityContext"]
    assert user["runAsNonRoot"] and user["runAsUser"] == 10001
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
