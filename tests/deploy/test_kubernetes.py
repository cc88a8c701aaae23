"""The manifests, against the schemas of Kubernetes and against each other."""

import json
import shutil
import socket
import subprocess

import kubernetes_validate
import pytest
import yaml
from stack import ROOT, Server, get, servers, wait_until, which

FOLDER = ROOT / "deploy" / "kubernetes"
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
KUSTOMIZATION = MANIFESTS.pop("kustomization.yaml")
# Of the Prometheus operator, not of Kubernetes.
MONITOR = MANIFESTS.pop("servicemonitor.yaml")
DEPLOYMENT = MANIFESTS["deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
OPERATOR = ROOT / "tests" / "deploy" / "operator"
needs_kubectl = pytest.mark.skipif(
    not which("kubectl"), reason="NOT RUN: kubectl is not installed, which puts the manifests together"
)
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
    for file in ("package.json", "package-lock.json"):
        shutil.copy(OPERATOR / file, folder)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
        wrong = done.stderr
    except subprocess.TimeoutExpired:
        done, wrong = None, "it took more than two minutes"
    # Another content than the lock says, or a lock that does not fit, is a finding; no registry is not.
    assert "EINTEGRITY" not in wrong and "EUSAGE" not in wrong, wrong
    if done is None or done.returncode != 0:
        pytest.skip(f"NOT RUN: npm could not fetch the schema of ServiceMonitor: {wrong.strip()[:200]}")
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


def selectors(node) -> list:
    """Every selector in `node`, in order."""
    if isinstance(node, list):
        return [found for part in node for found in selectors(part)]
    if not isinstance(node, dict):
        return []
    own = [(name, value) for name, value in node.items() if name.lower().endswith("selector")]
    return own + [found for name in sorted(node) for found in selectors(node[name])]


def test_kustomization_leaves_selectors_alone():
    # What kubectl shows where it is installed, and what else would put labels into selectors.
    assert "commonLabels" not in KUSTOMIZATION
    assert not any(entry.get("includeSelectors") for entry in KUSTOMIZATION["labels"])


@needs_kubectl
def test_kustomization_is_put_together():
    done = subprocess.run([which("kubectl"), "kustomize", FOLDER], check=True, capture_output=True, text=True)
    made = {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}
    assert set(made) == {manifest["kind"] for manifest in (*MANIFESTS.values(), MONITOR)}
    assert {manifest["metadata"]["namespace"] for manifest in made.values()} == {KUSTOMIZATION["namespace"]}
    # Putting together must not narrow whom anything selects: a client carries another name than the server.
    for raw in (*MANIFESTS.values(), MONITOR):
        assert selectors(made[raw["kind"]]) == selectors(raw), raw["kind"]
    (clients, _) = made["NetworkPolicy"]["spec"]["ingress"]
    assert clients["from"] == [{"podSelector": {"matchLabels": {"rerankd-client": "true"}}}]
    made.pop("ServiceMonitor")
    for manifest in made.values():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@needs_kubectl
def test_the_overlay_for_a_gpu_asks_for_one_and_changes_nothing_else():
    def made(folder) -> dict:
        done = subprocess.run([which("kubectl"), "kustomize", folder], check=True, capture_output=True, text=True)
        return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(done.stdout)}

    plain, gpu = made(FOLDER), made(ROOT / "deploy" / "kubernetes-cuda")
    before, after = plain.pop("Deployment"), gpu.pop("Deployment")
    assert gpu == plain
    kubernetes_validate.validate(after, kubernetes_validate.latest_version(), strict=True)
    (was,) = before["spec"]["template"]["spec"]["containers"]
    (container,) = after["spec"]["template"]["spec"]["containers"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["nvidia.com/gpu"] == "1"
    settings = {entry["name"]: entry["value"] for entry in container["env"]}
    documented = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"`{name}`" in documented for name in settings)
    # Never `auto`, which would serve from the processor where the GPU is missing.
    assert settings["RERANKD_DEVICE"] == "cuda"
    assert all(entry in container["env"] for entry in was["env"])
    assert container["image"] != was["image"]
    for part in ("securityContext", "volumeMounts", "ports", "readinessProbe", "livenessProbe"):
        assert container[part] == was[part], part


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
    http, admin = CONTAINER["ports"]
    settings = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    assert settings["RERANKD_ADMIN_LISTEN"] == f"0.0.0.0:{admin['containerPort']}"
    assert f"RERANKD_LISTEN=0.0.0.0:{http['containerPort']}" in (ROOT / "Dockerfile").read_text()
    for port, service in zip((http, admin), MANIFESTS["service.yaml"]["spec"]["ports"], strict=True):
        assert service["targetPort"] == service["name"] == port["name"]
    assert [endpoint["port"] for endpoint in MONITOR["spec"]["endpoints"]] == [admin["name"]]
    clients, monitoring = MANIFESTS["networkpolicy.yaml"]["spec"]["ingress"]
    assert clients["ports"] == [{"port": http["name"]}]
    assert monitoring["ports"] == [{"port": admin["name"]}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == admin["name"]


def test_clients_that_hold_every_connection_fail_no_probe():
    place = Server()
    connections = []
    try:
        with servers(1, "--max-connections", "4", "--admin-listen", place.address) as (instance,):
            # More than are served at once; what is taken before them ends first.
            for _ in range(16):
                connections.append(socket.create_connection(instance.address.split(":"), timeout=5))
            wait_until(lambda: get(f"{instance.url}/live", timeout=2)[0] != 200, 30, "every connection to be held")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert get(place.url + CONTAINER[probe]["httpGet"]["path"])[0] == 200, probe
            assert get(place.url + MONITOR["spec"]["endpoints"][0]["path"])[0] == 200
    finally:
        for connection in connections:
            connection.close()
        place.close()


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
