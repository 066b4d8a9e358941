"""What the CRM says of itself: an OpenAPI 3.1 document, its schemas from the models that the API answers with."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from triptych.examples.crm.customers import Customer, Customers, NewNote, Note, Notes, SupportPlan

KEY_HEADER = "X-Api-Key"
MODELS = (Customer, Customers, NewNote, Note, Notes)

_CUSTOMER = {"name": "customer_id", "in": "path", "required": True, "schema": {"type": "string", "pattern": r"^C-\d+$"}}
_KEY = {"name": "Idempotency-Key", "in": "header", "required": True, "schema": {"type": "string", "maxLength": 200}}


def document() -> dict[str, Any]:
    """Build the document at /openapi.json."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ledgerline CRM", "version": "2026-11"},
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": {
            "/customers": {
                "get": {
                    "operationId": "findCustomers",
                    "summary": "Find customers by e-mail address or plan",
                    "parameters": [
                        {"name": "email", "in": "query", "schema": {"type": "string"}},
                        {
                            "name": "plan",
                            "in": "query",
                            "description": "Any of these.",
                            "schema": {"type": "array", "items": {"enum": [plan.value for plan in SupportPlan]}},
                        },
                    ],
                    "responses": _answer("The customers that fit.", "Customers"),
                }
            },
            "/customers/{customer_id}": {
                "parameters": [_CUSTOMER],
                "get": {
                    "operationId": "getCustomer",
                    "summary": "One customer by id",
                    "responses": _answer("The customer.", "Customer"),
                },
            },
            "/customers/{customer_id}/notes": {
                "parameters": [_CUSTOMER],
                "get": {
                    "operationId": "listNotes",
                    "summary": "The notes about a customer, oldest first",
                    "responses": _answer("The notes.", "Notes"),
                },
                "post": {
                    "operationId": "createNote",
                    "summary": "Write a note about a customer, with a time to call back if one was agreed",
                    "parameters": [_KEY],
                    "requestBody": {"required": True, **_content("NewNote")},
                    "responses": _answer("The note.", "Note", "201") | _answer("It was there.", "Note"),
                },
            },
            "/customers/{customer_id}/account-manager": {
                "parameters": [_CUSTOMER],
                "put": {
                    "operationId": "setAccountManager",
                    "summary": "Hand a customer over to another account manager",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "properties": {"name": {"type": "string", "minLength": 1}},
                                    "required": ["name"],
                                    "additionalProperties": False,
                                }
                            }
                        },
                    },
                    "responses": _answer("The customer.", "Customer"),
                },
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": KEY_HEADER}},
            "schemas": schemas["$defs"],
        },
    }


def _answer(description: str, model: str, status: str = "200") -> dict[str, Any]:
    return {status: {"description": description, **_content(model)}}


def _content(model: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}
