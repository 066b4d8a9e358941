"""Which steps a step waits for, and where its arguments have to come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triptych.playbook import expressions
from triptych.schemas import Json, StepSpec


def waits_for(spec: StepSpec) -> tuple[str, ...]:
    """List the steps that must have ended before this one: those it names, then those it refers to.

    Raises:
        ExpressionError: a template or expression of the step does not compile.
    """
    referred = (
        expressions.references(spec.arguments)
        | expressions.references(spec.map)
        | expressions.references_of(spec.when)
        | expressions.references_of(spec.expect)
        | expressions.references([each.arguments for each in spec.fallback])
        | origin_steps(spec)
    )
    return tuple(dict.fromkeys((*spec.depends_on, *sorted(referred - {spec.id}))))


def operations_of(spec: StepSpec) -> Iterator[str]:
    """List the operation of a step, and those of its fallbacks."""
    yield spec.operation
    yield from (each.operation for each in spec.fallback if each.operation is not None)


def origin_steps(spec: StepSpec) -> set[str]:
    """Find the steps that `must_come_from` names."""
    sources = (source for sources in spec.must_come_from.values() for source in sources)
    return {source.removeprefix("steps.") for source in sources if source.startswith("steps.")}


def contract_origins(schema: Mapping[str, Json], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Find where a contract says that arguments have to come from (`x-must-come-from`), by dotted path."""
    if (sources := schema.get("x-must-come-from")) is not None:
        yield ".".join(path), (sources,) if isinstance(sources, str) else tuple(sources)
    items = schema.get("items")
    if isinstance(items, Mapping):
        yield from contract_origins(items, path)
    for name, inner in schema.get("properties", {}).items():
        if isinstance(inner, Mapping):
            yield from contract_origins(inner, (*path, name))
