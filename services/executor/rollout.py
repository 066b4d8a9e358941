"""Which version of each playbook new tasks get: what its folder holds, and what people have activated since.

The folder and the table of activations are looked at every second, so a change needs no restart. The last change wins.
A file that cannot be used leaves the version that was active before in place, and is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from triptych.executor.deployments import Deployment, InvalidPlaybook, PlaybookFolder, load_playbooks, shown
from triptych.executor.intake import Executor
from triptych.executor.store import Activation, ExecutorStore
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.outage import POSTGRES_GONE, Outage
from triptych.kernel.process.service import Service

LOOK_EVERY_S = 1.0

Stamp = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class Rollout:
    """The playbooks that one executor offers to new tasks."""

    service: Service
    store: ExecutorStore
    path: Path
    deployments: dict[str, Deployment] = field(default_factory=dict)
    left_out: Mapping[str, InvalidPlaybook] = field(default_factory=dict)
    _folder: PlaybookFolder = field(default_factory=lambda: PlaybookFolder([], []))
    _stamp: Stamp | None = None

    async def look(self) -> bool:
        """Learn what the folder and the table say now; whether anything has changed.

        Raises:
            ConfigurationError: at the first look, the folder holds no playbook.
        """
        is_new = await self._read_folder()
        deployments = {}
        for active in await self.store.activations():
            if self._is_offered(active) and (deployment := await self._deployment(active)) is not None:
                deployments[active.name] = deployment
        left_out = {each.name: each for each in self._folder.left_out}
        self._log_left_out(deployments, left_out, is_first=not self.deployments)
        is_new |= {name: one.playbook.version for name, one in deployments.items()} != {
            name: one.playbook.version for name, one in self.deployments.items()
        }
        self.deployments, self.left_out = deployments, left_out
        return is_new

    async def follow(self, executor: Executor) -> None:
        """Let the executor offer what has changed, until this is cancelled."""
        outage = Outage(self.service.log, "postgres")
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if await self.look():
                    executor.offer(self.deployments, self.left_out)
                outage.over()
            except POSTGRES_GONE as error:
                await outage.wait(error, unless=self.service.stopping)
            except Exception:
                self.service.log.exception("playbooks could not be looked at; those of before stay")

    async def _read_folder(self) -> bool:
        """Read the folder again if a file in it has changed."""
        stamp = await asyncio.to_thread(_stamp_of, self.path)
        if stamp == self._stamp:
            return False
        try:
            # In a thread of its own, for a folder of odd files takes long to read, and this process must stay alive.
            folder = await asyncio.to_thread(load_playbooks, self.path)
        except ConfigurationError as error:
            if self._stamp is None:
                raise
            self.service.log.error("no playbooks; those of before stay", why=str(error))  # noqa: TRY400
            self._stamp = stamp
            return False
        await self.store.deploy(folder.playbooks)
        await self.store.activate_from_folder(folder.playbooks)
        self._folder, self._stamp = folder, stamp
        return True

    def _is_offered(self, active: Activation) -> bool:
        """Return whether the folder still holds it, or never did. What is left out there stays as it was."""
        known = {playbook.name for playbook in self._folder.playbooks} | {each.name for each in self._folder.left_out}
        return active.folder_version is None or active.name in known

    async def _deployment(self, active: Activation) -> Deployment | None:
        known = self.deployments.get(active.name)
        if known is not None and known.playbook.version == active.version:
            return known
        playbook = await self.store.playbook(active.name, active.version)
        return Deployment.of(playbook) if playbook is not None else known

    def _log_left_out(
        self, deployments: Mapping[str, Deployment], left_out: Mapping[str, InvalidPlaybook], *, is_first: bool
    ) -> None:
        log, health = self.service.log, self.service.health
        for name in self.left_out.keys() - left_out.keys():
            health.unwarn(f"playbook {shown(name)}")
        for name, each in left_out.items():
            if self.left_out.get(name) != each:
                stays = f"; {deployments[name].playbook.version} stays active" if name in deployments else ""
                log.error("playbook left out", playbook=name, file=shown(each.file), why=shown(each.why) + stays)
                health.warn(f"playbook {shown(name)}", f"left out: {shown(each.why)}{stays}")
        versions = {name: one.playbook.version for name, one in deployments.items()}
        if is_first:
            log.info("playbooks deployed", playbooks=[f"{name}@{version}" for name, version in versions.items()])
            return
        before = {name: one.playbook.version for name, one in self.deployments.items()}
        for name in sorted(versions.keys() | before.keys()):
            if versions.get(name) != before.get(name):
                log.info("playbook changed", playbook=name, version=versions.get(name), before=before.get(name))


def _stamp_of(folder: Path) -> Stamp:
    """Return the times and sizes of the files. The fault of an unreadable file is reported when it is read."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            status = path.stat()
        except OSError:
            found.append((path.name, 0, 0))
        else:
            found.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(found)
