"""The workflows, templates and hooks, held to the Makefile, to pyproject.toml and to each other.

`make check` checks their form with GitHub's schemas. Here is what no schema knows.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FILES = [*sorted(GITHUB.rglob("*.yml")), ROOT / ".pre-commit-config.yaml"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
LEVELS = {"test-unit", "test-integration", "test-acceptance", "test-chaos"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for job, body in read(path)["jobs"].items():
            yield f"{path.stem}.{job}", body


def made(job: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the targets that a job makes, each with the variables that it sets."""
    lines = [line.strip() for step in job.get("steps", []) for line in step.get("run", "").splitlines()]
    words = [line.split() for line in lines if line.startswith("make ")]
    return [(target, [word.partition("=")[0] for word in rest if "=" in word]) for _, target, *rest in words]


def versions(job: dict[str, Any]) -> set[str]:
    """Return the versions of Python that a job prepares."""
    matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
    given = [
        step["with"]["python-version"] for step in job.get("steps", []) if "python-version" in step.get("with", {})
    ]
    return {*matrix, *(version for version in given if not version.startswith("${{"))}


def declared() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_file_is_a_mapping_in_yaml(path: Path) -> None:
    assert isinstance(read(path), dict)


@pytest.mark.parametrize(("job", "body"), [pytest.param(job, body, id=job) for job, body in jobs()])
def test_a_job_makes_targets_and_variables_that_exist(job: str, body: dict[str, Any]) -> None:
    for target, variables in made(body):
        assert target in TARGETS, f"{job} makes {target}"
        for variable in variables:
            assert f"$({variable})" in MAKEFILE or f"$(or $({variable})," in MAKEFILE, f"{job} sets {variable}"


@pytest.mark.parametrize(("job", "body"), [pytest.param(job, body, id=job) for job, body in jobs()])
def test_a_job_has_a_time_limit_and_needs_jobs_that_exist(job: str, body: dict[str, Any]) -> None:
    needed = body.get("needs", [])
    known = {name for name, _ in jobs()}
    workflow = job.partition(".")[0]
    assert all(f"{workflow}.{one}" in known for one in ([needed] if isinstance(needed, str) else needed))
    assert "timeout-minutes" in body or "uses" in body  # a workflow that is called has limits of its own


def test_a_change_is_held_to_every_level_of_tests_and_a_night_to_the_long_ones() -> None:
    tests = {target for job, body in jobs() if job.startswith("tests.") for target, _ in made(body)}
    night = {target for job, body in jobs() if job.startswith("nightly.") for target, _ in made(body)}
    assert {"check", "commit-subjects", "docs-site", "dist", "images", *LEVELS} <= tests
    assert night == {"crash-matrix", "simulate", "chaos", "documents"}


def test_every_folder_of_tests_is_a_level() -> None:
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders == {"unit", "simulation", "integration", "acceptance", "chaos"}
    recipes = "".join(re.findall(r"^test-[\w-]+:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
    assert [folder for folder in folders if f"tests/{folder}" not in recipes] == []


def test_the_versions_of_python_are_those_that_the_package_declares() -> None:
    classifiers = [line.rpartition(" ")[2] for line in declared()["classifiers"] if "Python :: 3." in line]
    prepared = {job: versions(body) for job, body in jobs()}
    assert prepared["tests.unit"] == set(classifiers)
    assert set().union(*prepared.values()) == set(classifiers)
    oldest, newest = classifiers[0], classifiers[-1]
    assert {oldest, newest} <= prepared["tests.integration"] & prepared["tests.acceptance"]
    assert declared()["requires-python"] == f">={oldest}"
    assert f"Python {', '.join(classifiers[:-1])} or {newest}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_fields_of_a_form_have_ids_of_their_own() -> None:
    for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml"):
        ids = [field["id"] for field in read(path).get("body", []) if "id" in field]
        assert len(ids) == len(set(ids)), path.name


def test_hooks_call_programs_of_the_environment_that_are_there() -> None:
    hooks = [hook for repository in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    for hook in hooks:
        program, *arguments = hook["entry"].split()
        folder, _, command = program.rpartition("/")
        assert folder == ".venv/bin"
        assert Path(sys.executable).with_name(command).exists()
        assert all((ROOT / argument).exists() for argument in arguments if argument.endswith(".py"))
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "commit-subject"}
