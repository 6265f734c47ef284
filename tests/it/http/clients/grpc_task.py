"""A gRPC server in the place of a task: python3 grpc_task.py ADDRESS PORT [CERTIFICATE KEY]. It knows no message types: bytes are
echoed, so nothing is generated."""
import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-forwarded-for", metadata.get("x-forwarded-for", "")), ("x-end", "yes")))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
    return request


def down(request, context):
    for number in range(int(request)):
        yield b"%d" % number
        time.sleep(0.05)


def both(requests, context):
    for request in requests:
        yield request.upper()


def up(requests, context):
    return b"%d" % sum(len(request) for request in requests)


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Echo/Down": grpc.unary_stream_rpc_method_handler(down),
            "/test.Echo/Up": grpc.stream_unary_rpc_method_handler(up),
            "/test.Echo/Both": grpc.stream_stream_rpc_method_handler(both),
        }.get(details.method)


address, port = sys.argv[1:3]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=(("grpc.so_reuseport", 0),))
server.add_generic_rpc_handlers((Handler(),))
if len(sys.argv) > 3:
    certificate, key = (open(name, "rb").read() for name in sys.argv[3:5])
    server.add_secure_port(f"{address}:{port}", grpc.ssl_server_credentials(((key, certificate),)))
else:
    server.add_insecure_port(f"{address}:{port}")
server.start()
server.wait_for_termination()
