"""JSON Schema (2020-12) of contracts, playbooks and answers: the one place that builds a validator.

A schema comes from outside as much as the values that are held to it. So it refers to nothing outside of
itself, it has a size, and what a check may cost is known before the check begins.
"""

from triptych.json_schema.defaults import with_defaults
from triptych.json_schema.patterns import PatternTooLargeError, check_pattern
from triptych.json_schema.pointer import referred, unescaped
from triptych.json_schema.schema import MAX_PROBLEMS, JsonSchema, SchemaError, describe_errors, path_of
from triptych.json_schema.structure import InvalidSchemaError

__all__ = [
    "MAX_PROBLEMS",
    "InvalidSchemaError",
    "JsonSchema",
    "PatternTooLargeError",
    "SchemaError",
    "check_pattern",
    "describe_errors",
    "path_of",
    "referred",
    "unescaped",
    "with_defaults",
]
