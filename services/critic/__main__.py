"""`python -m triptych.critic`: the critic as a process."""

from __future__ import annotations

from functools import partial

from triptych.contracts.registry import ContractRegistry
from triptych.critic.worker import Critic
from triptych.kernel.postgres.database import connect
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings
from triptych.kernel.worker import WorkerConfig, run_worker
from triptych.models import ModelClient, ModelSettings
from triptych.schemas import topics

CONFIG = WorkerConfig(
    request_noun=topics.REVIEWS,
    answer_noun=topics.VERDICTS,
    answer_type="triptych.verdict",
    group="critic",
)


async def serve(service: Service, settings: ServiceSettings, models: ModelSettings) -> None:
    """Answer requests for reviews until the process is told to stop."""
    async with (
        ModelClient(models) as client,
        await connect(settings.postgres.get_secret_value(), settings.instance) as pool,
        ContractRegistry(service, settings) as registry,
    ):
        client.keep_answers_in(pool)
        critic = Critic(registry, client, model_timeout_ms=models.timeout_ms)
        await run_worker(service, settings, critic, CONFIG, pool=pool)


def main() -> None:
    settings, models = load_settings(ServiceSettings), load_settings(ModelSettings)
    run("critic", settings, partial(serve, models=models))


if __name__ == "__main__":
    main()
