"""What a changed file concerns, and what is said of contracts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchfiles import Change

from triptych.commands import dev
from triptych.commands.common.change_impact import ChangeImpact, WatchedFiles
from triptych.embedded.config import StackConfig
from triptych.embedded.layout import Layout
from triptych.operator.contract_changes import differences
from triptych.schemas import Contract, Effect

CONFIG = """
[tools.weather]
adapter = "weather:tool"
path = "my-tools"

[tools.orders]
adapter = "triptych.tools.adapters.sql:tool"
options = { dsn_env = "DSN", files = ["sql/orders.sql"] }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "triptych.toml").write_text(CONFIG)
    for name in ("my-tools/parts", "my-tools/__pycache__", "sql", "playbooks", ".triptych"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sql" / "orders.sql").touch()
    return tmp_path


@pytest.fixture
def watched(folder: Path) -> WatchedFiles:
    return WatchedFiles.of(StackConfig.load(folder / "triptych.toml"))


def test_each_file_concerns_whoever_is_made_of_it(folder: Path, watched: WatchedFiles) -> None:
    assert watched.impact([folder / "triptych.toml"]).config
    assert watched.impact([folder / "playbooks" / "a.yaml"]).playbooks == (folder / "playbooks" / "a.yaml",)
    assert watched.impact([folder / "my-tools" / "parts" / "x.py"]).tools == {"weather"}
    assert watched.impact([folder / "sql" / "orders.sql"]).tools == {"orders"}


@pytest.mark.parametrize(
    "name", ["README.md", ".triptych/stack.json", "my-tools/__pycache__/x.pyc", "my-tools/.x.swp", "my-tools/test_x.py"]
)
def test_what_concerns_nobody_restarts_nothing(folder: Path, watched: WatchedFiles, name: str) -> None:
    assert not watched.impact([folder / name])


def test_folders_are_watched_since_editors_replace_files(folder: Path, watched: WatchedFiles) -> None:
    assert watched.folders() == {
        folder,
        *(folder / name for name in ("my-tools", "my-tools/parts", "sql", "playbooks")),
    }


def contract(operation: str, **more: object) -> Contract:
    fields = {"description": "x", "arguments": {"type": "object"}, "result": {}, "effect": Effect.READ}
    return Contract.model_validate({"operation": f"weather.{operation}", **fields, **more})


def test_what_has_become_of_contracts_is_told_one_line_each() -> None:
    before = [contract("old"), contract("same"), contract("better"), contract("worse")]
    demanding = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    after = [
        contract("new"),
        contract("same"),
        contract("better", description="y"),
        contract("worse", arguments=demanding, effect=Effect.ONCE),
    ]
    assert list(differences(before, after)) == [
        "~ weather.better: compatible",
        "+ weather.new",
        "- weather.old: calls that were planned are refused",
        "~ weather.worse: this breaks those who use it",
        "    the effect was read and is once",
        "    arguments: city: the field is new and required; no sender has it yet",
    ]


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        (lambda folder: (folder / "triptych.toml").write_text(f"{CONFIG}# changed\n"), ChangeImpact(config=True)),
        (lambda folder: (folder / "sql" / "orders.sql").unlink(), ChangeImpact(tools=frozenset({"orders"}))),
        (lambda folder: (folder / "my-tools" / "new.py").touch(), ChangeImpact(tools=frozenset({"weather"}))),
        (lambda folder: (folder / "my-tools" / ".new.py.swp").touch(), None),
        (lambda _folder: None, None),
    ],
    ids=["saved", "deleted", "made", "left by an editor", "nothing"],
)
def test_what_changes_before_the_folders_are_watched_is_taken_over_at_the_first_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], affected: ChangeImpact | None
) -> None:
    taken: list[ChangeImpact] = []

    def watch(*_folders: Path, **_options: object) -> Iterator[set[tuple[Change, str]]]:
        yield set()  # nothing is reported: the change came first
        yield {(Change.modified, str(folder / "triptych.toml"))}  # or it is reported late

    looks = iter([True, True, True, False, False])
    monkeypatch.setattr(dev, "watch", watch)
    monkeypatch.setattr(dev._Watcher, "_offered", lambda _self: {})
    monkeypatch.setattr(dev._Watcher, "_is_running", lambda _self: next(looks))
    monkeypatch.setattr(dev._Watcher, "_take_over", lambda _self, impact: taken.append(impact))
    watcher = dev._Watcher(Layout.at(folder / "data"), folder / "triptych.toml")
    change(folder)
    watcher.run()
    assert taken == ([affected] if affected else [])
