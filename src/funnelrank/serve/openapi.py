"""The OpenAPI document of what is served: paths of the models that are there, with the columns of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from funnelrank.serve.protocol import DATATYPES, VERSION
from funnelrank.serve.requests import Column
from funnelrank.serve.servable import Servable

KINDS = {"INT64": {"type": ["integer", "null"]}, "FP64": {"type": ["number", "null"]},
         "BOOL": {"type": ["boolean", "null"]}, "BYTES": {"type": ["string", "null"]}}
SAID = {400: "What is wrong with the request, in a sentence", 401: "A token is needed", 404: "No such model or version",
        408: "The body did not come", 413: "More than a request may hold", 415: "The body is compressed",
        503: "Busy or stopping; Retry-After says when to come again", 504: "The deadline passed"}


def document(servables: Iterable[Servable]) -> dict[str, Any]:
    paths: dict[str, Any] = {"/v2": _get("What serves"), "/v2/health/live": _get("Whether the process answers"),
                             "/v2/health/ready": _get("Whether it takes requests", 503)}
    schemas: dict[str, Any] = {"Error": {"type": "object", "required": ["error"],
                                         "properties": {"error": {"type": "string"}}}}
    for i, s in enumerate(servables):
        base = f"/v2/models/{s.name}"
        schemas[f"Infer{i}"], schemas[f"Rank{i}"] = _infer(s), _rank(s)
        paths |= {base: _get("Inputs and outputs"), f"{base}/ready": _get("Whether the model answers", 503),
                  f"{base}/infer": _post("Rows as tensors", f"Infer{i}"),
                  f"{base}/rank": _post("One user's candidates", f"Rank{i}")}
    return {"openapi": "3.1.0", "info": {"title": "funnelrank", "version": VERSION}, "paths": paths,
            "components": {"schemas": schemas}}


def _answers(*statuses: int) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(s): {"description": SAID[s], "content": error} for s in statuses}


def _get(summary: str, *also: int) -> dict[str, Any]:
    done = {"200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}}
    busy = {"503": {"description": "Stopping", "content": {"application/json": {"schema": {"type": "object"}}}}}
    return {"get": {"summary": summary, "responses": done | (busy if also else {})}}


def _post(summary: str, schema: str) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
    done = {"200": {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": done | _answers(*SAID)}}


def _infer(s: Servable) -> dict[str, Any]:
    tensor = {"type": "object", "required": ["name", "datatype", "shape", "data"], "properties": {
        "name": {"enum": list(s.columns)}, "datatype": {"enum": list(DATATYPES)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "data": {"type": "array"}}}
    return {"type": "object", "required": ["inputs"], "properties": {
        "id": {"type": "string"}, "inputs": {"type": "array", "items": tensor, "minItems": 1},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"],
                                               "properties": {"name": {"enum": s.outputs}}}}}}


def _rank(s: Servable) -> dict[str, Any]:
    shared = [c for c in s.columns if c in s.of_users]
    others = [c for c in s.columns if c not in shared]
    number = {"type": "number", "minimum": -10, "maximum": 10}
    numbers = {"type": "object", "properties": dict.fromkeys(s.outputs, number), "minProperties": 1,
               "additionalProperties": False}
    user = {"type": "object", "required": shared, "properties": {c: _value(s.columns[c]) for c in shared}}
    candidate = {"type": "object", "required": others, "additionalProperties": False,
                 "properties": {c: _value(s.columns[c]) for c in others}}
    sort = {"oneOf": [{"type": "object", "required": [o], "additionalProperties": False, "properties": {o: numbers}}
                      for o in ("sum", "product")]}
    return {"type": "object", "required": ["user", "candidates"], "additionalProperties": False, "properties": {
        "user": {**user, "additionalProperties": False},
        "candidates": {"type": "array", "items": candidate, "minItems": 1, "maxItems": 50},
        "outputs": {"type": "array", "items": {"enum": s.outputs}}, "sort": sort,
        "top": {"type": "integer", "minimum": 1}, "counts": {"type": "boolean"}, "id": {"type": "string"}}}


def _value(column: Column) -> dict[str, Any]:
    return {"type": ["array", "null"], "items": KINDS[column.datatype]} if column.is_list else KINDS[column.datatype]
