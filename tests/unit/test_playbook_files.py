"""A folder of playbooks with odd files in it: each is told with its name and cause, and the others run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord
from machine_story import NOW

from triptych.executor.deployments import Deployment, InvalidPlaybook, PlaybookFolder, load_playbooks
from triptych.executor.intake import Executor
from triptych.kernel.decider import InboundRecord, RejectedRecord
from triptych.kernel.errors import ConfigurationError
from triptych.playbook.loader import PlaybookErrors, load_playbook
from triptych.schemas import codec, topics

BUSY_FOR_S = 20.0
TEXT = """\
name: {name}
goal: x
input: {{type: object}}
tools: [kb.search]
plan: {{pattern: fixed, steps: [{{id: b, operation: kb.search, arguments: {arguments}}}]}}
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 8)}]\n" for n in range(9)
)


def good(name: str, arguments: str = "{query: hello}") -> str:
    return TEXT.format(name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (good("odd", "{o: .inf}"), ":5:74: plan.steps[0].arguments.o: Infinity is not a JSON number"),
        (good("odd", "{o: .nan}"), ":5:74: plan.steps[0].arguments.o: NaN is not a JSON number"),
        (good("odd", "{o: 1e400}"), ":5:74: plan.steps[0].arguments.o: "),
        (good("odd", "{o: %s}" % ("9" * 5_000)), ":5:77: this value cannot be read: Exceeds the limit"),
        (good("odd", "{o: 0x%s}" % ("f" * 5_000)), ":5:74: plan.steps[0].arguments.o: a number has more than 1,000"),
        (good("odd", '{t: "half \\ud83d"}'), ":5:74: plan.steps[0].arguments.t: "),
        (good("odd", '{"half \\ud83d": t}'), ":5:"),
        (good("odd", '{t: "a\\0b"}'), ":5:74: plan.steps[0].arguments.t: the text holds a NUL character"),
        (good("odd", '{"a\\0b": t}'), "the text holds a NUL character"),
        (good("odd", "{d: 9999-99-99}"), ":5:77: this value cannot be read: month must be in 1..12"),
        (good("odd", "{d: 2020-01-01}"), ":5:74: plan.steps[0].arguments.d: a value of kind date has no form in JSON"),
        (good("odd", "{d: !!python/object:os.system x}"), "has no form in JSON"),
        (good("odd", "{a: 1, a: 2}"), ":5:80: the key `a` is here twice"),
        (good("odd", "{1: x}"), "the key 1 is not text"),
        (good("odd", "[" * 50_000), ":5:270: there are more than 200 brackets inside each other"),
        (good("odd", "{a: %s}" % ("[" * 90 + "]" * 90)), "64 levels"),
        ("name: odd\nplan: " + "- " * 20_000 + "x", ""),
        (BOMB, "the document has more than 100000 values"),
        ("name: odd\0\n", "this is not YAML"),
        ("name: odd\n\tgoal: x", "this is not YAML"),
        ("", "input should be an object"),
        ("x" * 200_000, ":1:1: the file is larger than 131072 bytes"),
        (good("odd", '{q: "${{ input.q.matches(input.p) }}"}'), "the pattern of `matches` must be written out"),
        (good("odd", "{q: [" + ", ".join(["'${{ input.q }}'"] * 501) + "]}"), "501 expressions"),
    ],
)
def test_what_a_file_says_that_no_playbook_can_say_is_told_with_its_line(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    began = time.thread_time()
    with pytest.raises(PlaybookErrors) as caught:
        load_playbook(file)
    assert time.thread_time() - began < BUSY_FOR_S
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{file}:")


def test_an_integer_beyond_64_bits_is_kept_exactly(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    file.write_text(good("big", "{order: 1180591620717411303424}"))
    assert codec.decode(load_playbook(file).to_bytes(), limits=codec.MESSAGE)["plan"]["steps"][0]["arguments"] == {
        "order": 1180591620717411303424
    }


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def gone(path: Path) -> None:
    path.symlink_to("nothing")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100_000_000)


def other_encoding(path: Path) -> None:
    path.write_bytes("name: größe".encode("utf-16"))


@pytest.mark.parametrize("make", [fifo, folder, loop, device, gone, huge, other_encoding])
def test_what_is_no_file_of_text_keeps_no_other_playbook_from_running(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "odd.yaml")
    (tmp_path / "good.yaml").write_text(good("good"))
    found = load_playbooks(tmp_path)
    assert [each.name for each in found.playbooks] == ["good"]
    assert [each.name for each in found.left_out] == ["odd"]
    assert str(tmp_path / "odd.yaml") in found.left_out[0].why


def test_a_file_whose_name_is_no_text_is_left_out_like_any_other(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("name: odd\nx: 1")
    (tmp_path / "good.yaml").write_text(good("good"))
    found = load_playbooks(tmp_path)
    assert [each.name for each in found.playbooks] == ["good"]
    assert codec.encode(found.left_out[0].public_reason)


def test_two_files_of_one_name_are_both_left_out_and_the_others_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(good("same"))
    (tmp_path / "good.yaml").write_text(good("good"))
    found = load_playbooks(tmp_path)
    assert [each.name for each in found.playbooks] == ["good"]
    assert all("both define `same`. Rename one." in each.why for each in found.left_out)


def test_a_playbook_hands_over_to_one_that_is_left_out_and_not_to_one_that_is_not_there(tmp_path: Path) -> None:
    def hands_over(to: str) -> str:
        return good("to-" + to) + f"handoffs: [{to}]\n"

    (tmp_path / "odd.yaml").write_text(good("odd", "{o: .inf}"))
    (tmp_path / "a.yaml").write_text(hands_over("odd").replace("[kb.search]", "[kb.search, handoff.run]"))
    (tmp_path / "b.yaml").write_text(hands_over("nothing").replace("[kb.search]", "[kb.search, handoff.run]"))
    found = load_playbooks(tmp_path)
    assert "the folder has no playbook nothing" in next(one.why for one in found.left_out if one.name == "to-nothing")
    assert "to-odd" in {one.name for one in found.playbooks}


def test_a_folder_without_playbooks_is_a_mistake_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no"):
        load_playbooks(tmp_path)


def test_a_task_for_a_playbook_that_was_left_out_is_rejected_with_the_cause(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(good("refunds", "{o: .inf}"))
    (tmp_path / "good.yaml").write_text(good("good"))
    found: PlaybookFolder = load_playbooks(tmp_path)
    left_out: dict[str, InvalidPlaybook] = {each.name: each for each in found.left_out}
    executor = Executor({one.name: Deployment.of(one) for one in found.playbooks}, left_out=left_out)
    body = b'{"task_id":"t-1","playbook":"refunds","tenant":"acme","input":{}}'
    record = ConsumerRecord("triptych.tasks", 0, 7, 1_000, 0, None, body, 0, 0, len(body), ())
    with pytest.raises(RejectedRecord) as caught:
        executor.read(InboundRecord(topics.TASKS, record, body, NOW))
    assert caught.value.code == "unknown_playbook"
    assert "'refunds' was left out: odd.yaml:5:74: " in caught.value.message
    assert str(tmp_path) not in caught.value.message
