"""Creates a session, runs a handler in it and prints its result, with code generated from proto/.

usage: hello.py DIRECTORY-OF-GENERATED-CODE HOST:PORT
"""

import json
import sys

import grpc

generated, address = sys.argv[1:]
sys.path.insert(0, generated)

from sandmesh.executor.v1 import execution_pb2 as executor  # noqa: E402
from sandmesh.session.v1 import execution_pb2, session_pb2, session_service_pb2_grpc  # noqa: E402

with grpc.insecure_channel(address) as channel:
    service = session_service_pb2_grpc.SessionServiceStub(channel)
    created = service.CreateSession(session_pb2.CreateSessionRequest(template_id="python-basic"), timeout=30)
    session_id = created.session.session_id
    request = execution_pb2.ExecuteRequest(
        session_id=session_id,
        spec=execution_pb2.ExecutionSpec(
            language=executor.LANGUAGE_PYTHON,
            code="def handler(event):\n    print('hello', event['name'])\n    return {'result': 'hello world'}",
            event_json=json.dumps({"name": "python"}),
        ),
    )
    events = []
    stdout = b""
    for response in service.Execute(request, timeout=60):
        kind = response.WhichOneof("event")
        events.append(kind)
        if kind == "stdout":
            stdout += response.stdout.data
        if kind == "result":
            result = response.result
    try:
        service.GetSession(session_pb2.GetSessionRequest(session_id="none"), timeout=30)
        missing = "found"
    except grpc.RpcError as error:
        missing = error.code().name
    service.TerminateSession(session_pb2.TerminateSessionRequest(session_id=session_id), timeout=30)
    print(
        json.dumps(
            {
                "events": events,
                "stdout": stdout.decode(),
                "state": execution_pb2.Execution.State.Name(result.state),
                "exit_code": result.exit_code,
                "return_value": json.loads(result.return_value_json),
                "missing": missing,
            }
        )
    )
