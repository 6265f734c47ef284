"""A gRPC client: python3 grpc_client.py TARGET AUTHORITY [CERTIFICATE]. Prints a line for each thing that it has seen."""
import queue
import sys
import threading

import grpc

target, authority = sys.argv[1:3]
options = (("grpc.default_authority", authority), ("grpc.ssl_target_name_override", authority))
if len(sys.argv) > 3:
    trusted = grpc.ssl_channel_credentials(open(sys.argv[3], "rb").read())
    channel = grpc.secure_channel(target, trusted, options)
else:
    channel = grpc.insecure_channel(target, options)

unary = channel.unary_unary("/test.Echo/Unary")
answer, call = unary.with_call(b"hello", timeout=10)
trailers = dict(call.trailing_metadata())
print("unary", answer.decode(), call.code().name, trailers.get("x-end"), trailers.get("x-forwarded-for"))

large = b"x" * 300_000
print("large", len(unary(large, timeout=10)))

try:
    unary(b"fail", timeout=10)
except grpc.RpcError as error:
    print("status", error.code().name, error.details(), dict(error.trailing_metadata()).get("x-end"))

try:
    channel.unary_unary("/test.Echo/Missing")(b"", timeout=10)
except grpc.RpcError as error:
    print("missing", error.code().name)

print("down", *(part.decode() for part in channel.unary_stream("/test.Echo/Down")(b"5", timeout=10)))
print("up", channel.stream_unary("/test.Echo/Up")(iter([b"a" * 1000] * 50), timeout=10).decode())

# Each answer is read before the next request is sent: neither side may hold anything back.
sent = queue.Queue()
answers = channel.stream_stream("/test.Echo/Both")(iter(sent.get, None), timeout=20)
seen = []
for word in (b"one", b"two", b"three"):
    sent.put(word)
    seen.append(next(answers).decode())
sent.put(None)
print("both", *seen, len(list(answers)))

# Calls at a time share a connection.
answers = [unary.future(b"%d" % number, timeout=10) for number in range(50)]
print("many", sum(int(answer.result()) for answer in answers))

# A call that its client gives up ends at the server too; the connection goes on.
stream = channel.unary_stream("/test.Echo/Down")(b"1000", timeout=30)
next(stream)
stream.cancel()
print("after", unary(b"still", timeout=10).decode())
