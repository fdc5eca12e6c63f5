"""The KubeRay manifest: pods match Kubernetes schemas, other fields match KubeRay's, and the command is valid."""

import shlex

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from foley_client.cli import app


def strict(properties, required=()):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, WHOLE, COUNT, WORDS = (
    {"type": "string"},
    {"type": "boolean"},
    {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    {"type": "object", "additionalProperties": {"type": "string"}},
)
POD = strict({"metadata": {"type": "object"}, "spec": {"type": "object"}}, ["spec"])
HEAD = strict(
    {"serviceType": TEXT, "enableIngress": WHOLE, "rayStartParams": WORDS, "template": POD},
    ["rayStartParams", "template"],
)
GROUP = strict(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "numOfHosts": COUNT,
        "rayStartParams": WORDS,
        "template": POD,
    },
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
)
CLUSTER = strict(
    {
        "rayVersion": TEXT,
        "enableInTreeAutoscaling": WHOLE,
        "suspend": WHOLE,
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": GROUP},
    },
    ["headGroupSpec"],
)
RAY_JOB = strict(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": strict({"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}}),
        "spec": strict(
            {
                "activeDeadlineSeconds": COUNT,
                "backoffLimit": COUNT,
                "entrypoint": TEXT,
                "metadata": WORDS,
                "rayClusterSpec": CLUSTER,
                "runtimeEnvYAML": TEXT,
                "shutdownAfterJobFinishes": WHOLE,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
                "suspend": WHOLE,
                "ttlSecondsAfterFinished": COUNT,
            }
        ),
    },
    ["apiVersion", "kind", "metadata", "spec"],
)


@pytest.fixture
def manifest(repository):
    return yaml.safe_load((repository / "examples" / "kuberay.yaml").read_text())


def check(manifest):
    jsonschema.validate(manifest, RAY_JOB)
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_manifest_matches_schema(manifest):
    check(manifest)


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.update(entryPoint="x"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("minReplicas"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"].pop("containers"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(images="x"),
    ],
)
def test_schema_rejects_invalid_manifest(manifest, damage):
    damage(manifest["spec"])
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


def test_entrypoint_is_valid_command(manifest, tmp_path):
    program, *words = shlex.split(manifest["spec"]["entrypoint"])
    assert program == "foley"
    assert "--ray" in words
    words[words.index("/manifest/clips.csv")] = str(tmp_path / "clips.csv")
    (tmp_path / "video.mp4").touch()
    (tmp_path / "clips.csv").write_text("video\nvideo.mp4\n")
    assert CliRunner().invoke(app, [*words, "--check"]).exit_code == 0
