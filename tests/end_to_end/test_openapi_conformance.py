"""The live server against its own OpenAPI document: schemathesis makes requests of it and judges the answers."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.end_to_end.server_process import ServerProcess

EXAMPLES = 3
"""Requests for each endpoint."""

SHORT = {"max_output_tokens": 3, "max_tokens": 3, "max_completion_tokens": 3, "max_new_tokens": 3}


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    connection = http.client.HTTPConnection(urlsplit(f"//{server.address}").netloc, timeout=30)
    connection.request("GET", "/openapi.json")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def test_every_endpoint_answers_as_the_document_says(server: ServerProcess, document: dict[str, Any]) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_dict(document)
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            if isinstance(case.body, dict):
                case.body.update({name: most for name, most in SHORT.items() if name in case.body})
                case.body.pop("stream", None)
            answer = case.call(base_url=f"http://{server.address}", timeout=30)
            asked += 1
            assert answer.status_code < 500, (case.method, case.path, answer.status_code, answer.text)
            case.validate_response(
                answer, checks=[status_code_conformance, content_type_conformance, response_schema_conformance]
            )

        check()
    assert asked > 2 * len(document["paths"])
