"""What scripts do with the Docker SDK for Python, against the socket that is named; prints `ok` at the end."""
import sys
import time

import docker
from docker import types

client = docker.DockerClient(base_url="unix://" + sys.argv[1], version="auto", timeout=30)


def wait(what, condition):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("not in time: " + what)
        time.sleep(0.02)


def running(service):
    tasks = service.tasks(filters={"desired-state": "running"})
    return sorted(task["ID"] for task in tasks if task["Status"]["State"] == "running")


def refused(status, text, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except docker.errors.APIError as error:
        assert error.response.status_code == status and text in error.explanation, error
    else:
        raise AssertionError("not refused: " + text)


assert client.ping()
client.swarm.reload()
assert client.swarm.version > 0 and client.swarm.attrs["JoinTokens"]["Worker"]
assert sorted(node.attrs["Description"]["Hostname"] for node in client.nodes.list()) == ["lab1", "lab2", "lab3"]
assert [node.attrs["Spec"]["Role"] for node in client.nodes.list(filters={"role": "manager"})] == ["manager"]

network = client.networks.create("back", driver="overlay", labels={"a": "b"})
secret = client.secrets.create(name="password", data=b"secret")
config = client.configs.create(name="settings", data=b"text")
assert client.configs.get(config.id).attrs["Spec"]["Name"] == "settings"

service = client.services.create(
    "lab:1",
    command=["sleep", "1000"],
    name="web",
    labels={"tier": "front"},
    env=["A=1", "B=2"],
    networks=["back"],
    mode=types.ServiceMode("replicated", replicas=2),
    endpoint_spec=types.EndpointSpec(ports={8080: 80}),
    resources=types.Resources(mem_limit=64 << 20),
    restart_policy=types.RestartPolicy(condition="on-failure", delay=1_000_000_000, max_attempts=3),
    update_config=types.UpdateConfig(parallelism=1, delay=0, monitor=100_000_000, order="start-first"),
    secrets=[types.SecretReference(secret.id, "password")],
    configs=[types.ConfigReference(config.id, "settings", filename="/settings")],
    healthcheck=types.Healthcheck(test=["NONE"]),
    stop_grace_period=1_000_000_000,
)
wait("two tasks", lambda: len(running(service)) == 2)
assert [s.name for s in client.services.list(filters={"label": "tier=front"})] == ["web"]
refused(409, "name conflicts with an existing object", client.services.create, "lab:1", name="web")
refused(404, "service nosuch not found", client.services.get, "nosuch")

# An update reads the service with its defaults and posts all of it back.
before = running(service)
service.reload()
service.update(labels={"tier": "front", "more": "x"}, fetch_current_spec=True)
service.reload()
assert service.attrs["Spec"]["Labels"] == {"tier": "front", "more": "x"}, service.attrs["Spec"]
assert service.attrs["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1", "B=2"]
assert service.scale(4)
service.reload()
wait("four tasks", lambda: len(running(service)) == 4)
assert set(before) <= set(running(service)), "labels and scale replace no task"
stale = service.version
assert service.force_update()
wait("new tasks", lambda: len(running(service)) == 4 and not set(before) & set(running(service)))
refused(500, "update out of sequence", client.api.update_service, service.id, stale, task_template={"ContainerSpec": {"Image": "lab:1"}}, name="web")
refused(400, "in use", secret.remove)
tasks = running(service)
lines = b"".join(service.logs(stdout=True, stderr=True)).decode().splitlines()
assert all("line of " + task in lines for task in tasks), lines

node = client.nodes.list(filters={"name": "lab2"})[0]
spec = dict(node.attrs["Spec"], Availability="drain", Labels={"zone": "a"})
assert node.update(spec)
wait("a drained node", lambda: all(task["NodeID"] != node.id for task in service.tasks(filters={"desired-state": "running"})))

jobs = client.services.create("lab:1", name="everywhere", mode=types.ServiceMode("global"))
wait("a global service", lambda: len(running(jobs)) == 2)
for each in (service, jobs):
    each.remove()
network.remove()
secret.remove()
config.remove()
assert client.services.list() == [] and client.secrets.list() == [] and client.configs.list() == []
print("ok")
