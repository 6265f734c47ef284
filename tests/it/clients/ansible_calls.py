"""What Ansible's modules of community.docker send, by the library that they use (compose-and-clients-facts, last part); prints `ok` at the end."""
import sys
import time

import docker
from docker import types

api = docker.APIClient(base_url="unix://" + sys.argv[1], version="auto", timeout=30)


def wait(what, condition):
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("not in time: " + what)
        time.sleep(0.02)


def tasks(service, **more):
    return [task for task in api.tasks(filters=dict(service=service, **more)) if task["Status"]["State"] == "running"]


def running(service):
    return sorted(task["ID"] for task in tasks(service, **{"desired-state": "running"}))


# docker_swarm: posts what the playbook names and nothing else, with booleans as Python spells them.
def swarm_labels(labels):
    info = api.inspect_swarm()
    if info["Spec"]["Labels"] == labels:
        return False
    api.update_swarm(version=info["Version"]["Index"], swarm_spec={"Labels": labels}, rotate_worker_token=False, rotate_manager_token=False)
    return True


tokens = api.inspect_swarm()["JoinTokens"]
assert swarm_labels({"team": "shop"}) and not swarm_labels({"team": "shop"})
swarm = api.inspect_swarm()
assert swarm["JoinTokens"] == tokens, "False is no rotation"
assert swarm["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 5}, "what is left out has its default"


# docker_swarm_service: each update is the whole spec of the playbook, without a look at what is there.
def spec(image="lab:1", force=None, **more):
    container = types.ContainerSpec(image, command=["/bin/httpd"], env=["A=1"], tty=False, read_only=False, mounts=[], labels={"tier": "front"}, **more)
    template = types.TaskTemplate(container_spec=container, restart_policy=types.RestartPolicy(condition="any", delay=1_000_000_000), networks=["back"])
    if force is not None:
        template["ForceUpdate"] = force
    return {
        "task_template": template,
        "name": "web",
        "labels": {"team": "shop"},
        "mode": types.ServiceMode("replicated", replicas=2),
        "update_config": types.UpdateConfig(parallelism=0, delay=0, monitor=100_000_000),
        "endpoint_spec": types.EndpointSpec(ports={8080: (80, "tcp", "ingress")}),
    }


def update(posted):
    # The module begins again when the version has moved: the end of a rolling update moves it, too.
    for tries in range(5):
        shown = api.inspect_service("web")
        try:
            return api.update_service(shown["ID"], shown["Version"]["Index"], **posted)
        except docker.errors.APIError as error:
            if tries == 4 or "update out of sequence" not in str(error.explanation):
                raise


api.create_network("back", driver="overlay", attachable=True)
api.create_service(**spec())
wait("two tasks", lambda: len(running("web")) == 2)
before = running("web")
for _ in range(3):
    # `tty: false` is never shown, so that each run of the playbook is an update.
    update(spec())
assert running("web") == before and len(api.tasks(filters={"service": "web"})) == 2, "the same spec touches no task"

# What another one has added and the playbook does not name is dropped, and no task with it.
update(dict(spec(), labels={"team": "shop", "by": "hand"}))
update(spec())
assert api.inspect_service("web")["Spec"]["Labels"] == {"team": "shop"}
assert running("web") == before

# `force_update: true` is the clock's digits, beyond what a float holds; the next run leaves it out.
digits = 17324985023948571
update(spec(force=digits))
assert api.inspect_service("web")["Spec"]["TaskTemplate"]["ForceUpdate"] == digits
wait("new tasks", lambda: len(running("web")) == 2 and not set(before) & set(running("web")))
before = running("web")
update(spec())
assert running("web") == before, "what is left out forces nothing"
update(spec(force=digits + 1))
wait("new tasks again", lambda: len(running("web")) == 2 and not set(before) & set(running("web")))

# A change of the mode: removed by its name, and made again at once under the same name.
api.remove_service("web")
api.create_service(**dict(spec(), mode=types.ServiceMode("global")))
wait("a task on each node", lambda: len(running("web")) == 3)

# docker_swarm_info with tasks: it reads the container of each.
for task in tasks("web", **{"desired-state": "running"}):
    assert task["Status"]["ContainerStatus"]["ContainerID"], task

# docker_node: a spec of its own, and a second time nothing.
node = next(node for node in api.nodes() if node["Description"]["Hostname"] == "lab2")
wanted = {"Role": "worker", "Availability": "active", "Labels": {"disk": "ssd"}}
api.update_node(node["ID"], node["Version"]["Index"], wanted)
assert api.inspect_node(node["ID"])["Spec"] == wanted, api.inspect_node(node["ID"])["Spec"]

# docker_network with `force`: everything in Containers is let go, then the network is deleted.
api.remove_service("web")
for container in (api.inspect_network("back")["Containers"] or {}).values():
    api.disconnect_container_from_network(container["Name"], "back", force=True)
api.remove_network("back")
assert "back" not in [network["Name"] for network in api.networks()]
print("ok")
