"""Kafka's jars are fetched once, kept where the user says, and never used with another checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from jgo.env import LockedDependency, LockFile

from triptych.embedded import jars
from triptych.embedded.errors import JarsUnavailableError


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the user's choice in which the locked jars lie already."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    home = tmp_path / f"kafka-{hashlib.sha256(jars.LOCK.read_bytes()).hexdigest()[:12]}"
    home.mkdir()
    return home


def test_what_is_cached_is_not_fetched_again(fetched: Path) -> None:
    assert jars.kafka_jars(pytest.fail) == fetched


def test_the_cache_is_the_users_cache_directory_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPTYCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.cache_directory().name == "triptych"
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "elsewhere"))
    assert jars.cache_directory() == tmp_path / "elsewhere"


def test_every_jar_is_locked_with_a_checksum() -> None:
    locked = LockFile.load(jars.LOCK).dependencies
    assert "kafka_2.13" in {jar.artifactId for jar in locked}
    assert all(len(jar.sha256 or "") == 64 for jar in locked)


def test_a_jar_with_another_checksum_is_refused(tmp_path: Path) -> None:
    jar = tmp_path / "kafka.jar"
    jar.write_bytes(b"not what was locked")
    maven = MagicMock(repo_cache=tmp_path)
    maven.project().at_version().artifact().resolve.return_value = jar
    locked = LockedDependency("org.apache.kafka", "kafka", "1", sha256="0" * 64)
    with pytest.raises(JarsUnavailableError, match=r"org\.apache\.kafka:kafka:1 does not have the locked checksum"):
        jars._fetch_one(maven, locked)
