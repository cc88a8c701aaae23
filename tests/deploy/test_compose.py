"""The compose file, against the published schema of its format and against the files it mounts."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from stack import ROOT, which

FOLDER = ROOT / "docker"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def schema_takes(file) -> bool:
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(program, capture_output=True).returncode == 0


def test_compose_file_is_what_its_format_says(tmp_path):
    assert schema_takes(FOLDER / "compose.yaml")
    wrong = json.loads(json.dumps(COMPOSE))
    wrong["services"]["rerankd"]["read_onli"] = True
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(wrong))
    assert not schema_takes(file)


def mounts():
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target = mount.replace("${DOCUMENTS:-../docs}", "../docs").split(":")[:2]
            yield source, target


def test_what_is_mounted_is_there():
    for source, _ in mounts():
        there = (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert there, source


def test_services_wait_for_services_and_share_their_networks():
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert SERVICES["rerankd"]["build"]["context"] == ".."


def test_only_this_machine_reaches_the_ports():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_grafana_finds_its_dashboard():
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    targets = {target: source for source, target in mounts()}
    assert targets[f"{folder}/dashboard.json"] == "../deploy/monitoring/dashboard.json"
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["isDefault"]


@pytest.mark.skipif(which("promtool") is None, reason="NOT RUN: promtool is not installed (apt-get install prometheus)")
def test_prometheus_takes_its_configuration(tmp_path):
    # Laid out as the container has it.
    shutil.copy(FOLDER / "prometheus.yaml", tmp_path / "prometheus.yml")
    shutil.copy(ROOT / "deploy" / "monitoring" / "rules.yaml", tmp_path)
    check = [which("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0 and "rules found" in done.stdout, done.stdout + done.stderr


def test_search_image_pins_what_the_checks_use():
    pinned = (ROOT / "tests" / "deploy" / "requirements.txt").read_text().splitlines()
    assert set((FOLDER / "search" / "requirements.txt").read_text().split()) <= set(pinned)
