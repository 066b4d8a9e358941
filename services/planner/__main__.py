"""`python -m triptych.planner`: the planner as a process."""

from __future__ import annotations

from functools import partial

from triptych.contracts.registry import ContractRegistry
from triptych.kernel.postgres.database import connect
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings
from triptych.kernel.worker import WorkerConfig, run_worker
from triptych.models import ModelClient, ModelSettings
from triptych.planner.gaps import PostgresGaps
from triptych.planner.worker import Planner
from triptych.schemas import topics

CONFIG = WorkerConfig(
    request_noun=topics.PLAN_REQUESTS,
    answer_noun=topics.PLANS,
    answer_type="triptych.plan",
    group="planner",
)


async def serve(service: Service, settings: ServiceSettings, models: ModelSettings) -> None:
    """Answer requests for plans until the process is told to stop."""
    async with (
        ModelClient(models) as client,
        await connect(settings.postgres.get_secret_value(), settings.instance) as pool,
        ContractRegistry(service, settings) as registry,
    ):
        client.keep_answers_in(pool)
        gaps = PostgresGaps(pool, service.log)
        planner = Planner(registry, client, model_timeout_ms=models.timeout_ms, gaps=gaps)
        await run_worker(service, settings, planner, CONFIG, pool=pool)


def main() -> None:
    settings, models = load_settings(ServiceSettings), load_settings(ModelSettings)
    run("planner", settings, partial(serve, models=models))


if __name__ == "__main__":
    main()
