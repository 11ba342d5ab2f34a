"""Runs what the chart renders: every pod's own arguments, environment, volumes, security context and probes, as containers of the
image, on a network where the pods have the names that they would have. A kubelet and the controllers, as far as these pods need them.

Promises, in order: certificates come from the chart's Job; every probe passes; `helm test` paints the picture that it has to be; the
gateway answers; a killed stage costs time and no bit; all roles are replaced under load and no request fails; etcd's snapshot brings a
cluster back.

JANUS is the program, JANUS_DOCKER a folder with dockerd,
JANUS_ETCD a folder with etcd, etcdctl and etcdutl.
"""

import base64
import json
import os
import re
import shutil
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import chart
import grpc
from engine import LONG, Engine, Failed, run, until

NAMESPACE = "paint"
# A kubelet's probes believe every certificate.
UNVERIFIED = ssl._create_unverified_context()
# A picture takes some seconds, so that things can happen to it.
SLOW = ["--test", "--test-step-delay-ms=30"]
VALUES = {
    "image": {"repository": "janus", "tag": "here"},
    "etcd": {"image": {"repository": "etcd", "tag": "here"}},
    "coordinator": {"stages": 3},
    "pools": [{"name": "main", "replicas": 3, "extraArgs": SLOW}],
    "gateway": {"replicas": 1},
    "logFormat": "text",
}


def health(address, service):
    """What `grpc.health.v1` says: 1 is serving. None if nobody answers."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda name: b"\x0a" + bytes([len(name)]) + name.encode() if name else b"",
            response_deserializer=lambda data: data[1] if len(data) > 1 else 0,
        )
        try:
            return ask(service, timeout=5)
        except grpc.RpcError:
            return None


class Pod:
    """One pod: its container, and what a kubelet would do for it."""

    def __init__(self, cluster, name, template, owner=None):
        self.cluster, self.engine, self.name, self.template = cluster, cluster.engine, name, template
        self.spec, self.owner = template["spec"], owner
        self.container = self.spec["containers"][0]
        self.labels = template["metadata"]["labels"]

    def volumes(self, container):
        flags = []
        given = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume = given.get(mount["name"])
            if volume is None:  # of a claim
                source = self.cluster.folder / "claims" / f"{mount['name']}-{self.name}"
                source.mkdir(parents=True, exist_ok=True)
                os.chown(source, 65532, 65532)
                flags += ["-v", f"{source}:{mount['mountPath']}"]
            elif "secret" in volume:
                source = self.cluster.secret(volume["secret"]["secretName"]) / mount.get("subPath", "")
                flags += ["-v", f"{source}:{mount['mountPath']}:ro"]
            elif volume["name"] == "tmp":
                flags += ["--tmpfs", f"{mount['mountPath']}:mode=1777,uid=65532,gid=65532"]
            else:  # shared by the pod's containers
                source = self.cluster.folder / "shared" / f"{self.name}-{volume['name']}"
                source.mkdir(parents=True, exist_ok=True)
                os.chown(source, 65532, 65532)
                flags += ["-v", f"{source}:{mount['mountPath']}" + (":ro" if mount.get("readOnly") else "")]
        return flags

    def create(self, container, name, extra=()):
        """`docker create` as the security context, resources and environment say; gives back its address."""
        security, pod = container["securityContext"], self.spec["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        flags = ["--name", name, "--network", "pods", "--read-only", "--user", f"{pod['runAsUser']}:{pod['runAsGroup']}"]
        flags += ["--security-opt", "no-new-privileges"] + [f"--cap-drop={c}" for c in security["capabilities"]["drop"]]
        memory = container["resources"]["limits"]["memory"]
        flags += ["--memory", memory.replace("Mi", "m").replace("Gi", "g")]
        for service in self.cluster.services_of(self.labels):
            if service not in self.cluster.virtual:
                flags += ["--network-alias", f"{service}.{NAMESPACE}.svc"]
            if self.owner and self.owner["spec"].get("serviceName") == service:
                flags += ["--network-alias", f"{self.name}.{service}.{NAMESPACE}.svc"]
        address = self.cluster.address()
        flags += ["--ip", address]
        flags += [f"--add-host={name}.{NAMESPACE}.svc:{virtual}" for name, virtual in self.cluster.virtual.items()]
        environment = {}
        for variable in container.get("env", []):
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            environment[variable["name"]] = {"metadata.name": self.name, "status.podIP": address}.get(field, variable.get("value"))
        flags += [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        # The one thing that a kubelet does to arguments.
        expand = lambda text: re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], text)
        command = [expand(text) for text in [*container.get("command", []), *container.get("args", [])]]
        if container.get("command"):
            flags += ["--entrypoint", command.pop(0)]
        self.engine.docker("create", *flags, *extra, *self.volumes(container), container["image"], *command)
        return address

    def start(self):
        for init in self.spec.get("initContainers", []):
            Pod.once(self, init)
        self.check()
        self.address = self.create(self.container, self.name)
        self.engine.docker("start", self.name)
        return self

    def once(self, container):
        """A container that has to end well."""
        name = f"{self.name}-{container['name']}"
        self.create(container, name)
        self.engine.docker("start", name)
        code = int(self.engine.docker("wait", name))
        if code:
            raise Failed(f"{name} ended with {code}:\n{self.engine.logs(name)}")
        self.engine.docker("rm", name)

    def check(self):
        """The program itself finds nothing wrong with what it is about to be given."""
        if not self.container["image"].startswith("janus:"):
            return
        name = f"{self.name}-check"
        container = {**self.container, "args": ["config", "check", "--", *self.container["args"]]}
        self.create(container, name)
        self.engine.docker("start", name)
        code = int(self.engine.docker("wait", name))
        if code:
            raise Failed(f"{self.name}: {self.engine.logs(name)}")
        self.engine.docker("rm", name)

    def probe(self, which):
        probe = self.container.get(f"{which}Probe")
        if "grpc" in probe:
            return health(f"{self.address}:{probe['grpc']['port']}", probe["grpc"]["service"]) == 1
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        get = probe["httpGet"]
        try:
            url = f"{get.get('scheme', 'HTTP').lower()}://{self.address}:{ports[get['port']]}{get['path']}"
            with urllib.request.urlopen(url, timeout=5, context=UNVERIFIED) as answer:
                return answer.status == 200
        except OSError:
            return False

    def running(self):
        state = self.engine.inspect(self.name)["State"]
        if not state["Running"]:
            raise Failed(f"{self.name} ended with {state['ExitCode']}:\n{self.engine.logs(self.name)}")
        return True

    def ready(self):
        try:
            until("it is started and ready", lambda: self.running() and self.probe("startup") and self.probe("readiness"))
        except Failed as failure:
            raise Failed(f"{self.name}: {failure}\n{self.engine.logs(self.name)}") from None
        self.cluster.serving.add(self)
        self.cluster.route()
        assert self.probe("liveness"), f"{self.name} is ready and not alive"
        return self

    def stop(self):
        """SIGTERM, and time; whoever needs SIGKILL has not handed over."""
        self.cluster.serving.discard(self)
        self.cluster.route()
        grace = self.spec["terminationGracePeriodSeconds"]
        self.engine.docker("stop", "-t", grace, self.name, timeout=grace + LONG)
        state = self.engine.inspect(self.name)["State"]
        if state["ExitCode"]:
            raise Failed(f"{self.name} did not end well ({state['ExitCode']}):\n{self.engine.logs(self.name)}")
        self.engine.docker("rm", self.name)


class Cluster:
    """Namespace `paint` with one release of the chart."""

    def __init__(self, engine, folder, values):
        self.engine, self.folder, self.values = engine, Path(folder), values
        self.objects = chart.render(values)
        self.pods, self.hosts = {}, 10
        subnet = json.loads(engine.docker("network", "inspect", "pods"))[0]["IPAM"]["Config"][0]["Subnet"]
        self.network = subnet.rsplit(".", 2)[0]
        # Services with an address of their own, and the pods behind them.
        self.serving = set()
        services = [s["metadata"]["name"] for s in chart.of(self.objects, "Service") if s["spec"].get("clusterIP") != "None"]
        self.virtual = {name: f"10.96.0.{i + 1}" for i, name in enumerate(services)}
        run("iptables", "-t", "nat", "-N", "SERVICES")
        run("iptables", "-t", "nat", "-I", "PREROUTING", "-j", "SERVICES")
        run("iptables", "-t", "nat", "-I", "POSTROUTING", "-m", "conntrack", "--ctstate", "DNAT", "-s", subnet, "-d", subnet, "-j", "MASQUERADE")

    def route(self):
        """What kube-proxy does: a new connection to a Service goes to any of its pods that are ready, and stays there."""
        rules = ["*nat", "-F SERVICES"]
        for name, virtual in self.virtual.items():
            ready = [pod.address for pod in self.serving if name in self.services_of(pod.labels)]
            for i, address in enumerate(ready):
                chance = f"-m statistic --mode nth --every {len(ready) - i} --packet 0 " if i + 1 < len(ready) else ""
                rules.append(f"-A SERVICES -d {virtual} -p tcp {chance}-j DNAT --to-destination {address}")
        run("iptables-restore", "--noflush", input="\n".join([*rules, "COMMIT", ""]))

    def address(self):
        self.hosts += 1
        return f"{self.network}.{self.hosts // 250}.{self.hosts % 250 + 2}"

    def secret(self, name):
        return self.folder / "secrets" / name

    def put(self, secret, name, data):
        """A key of a Secret, as defaultMode and fsGroup let a pod see it."""
        file = self.secret(secret) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.chmod(file, 0o440)
        os.chown(file, 0, 65532)

    def secrets(self):
        """Those that the chart renders; once they are there, `lookup` finds them."""
        for secret in chart.of(self.objects, "Secret"):
            for name, data in secret["data"].items():
                self.put(secret["metadata"]["name"], name, base64.b64decode(data))

    def services_of(self, labels):
        return [s["metadata"]["name"] for s in chart.of(self.objects, "Service") if s["spec"]["selector"].items() <= labels.items()]

    def workloads(self, *roles):
        return [o for o in self.objects if o["kind"] in ("Deployment", "StatefulSet") and chart.role(o) in roles]

    def certificates(self, objects, name):
        """The hook: its init containers run, and what kubectl would have made of its arguments is made."""
        (job,) = chart.of(objects, "Job")
        template = job["spec"]["template"]
        pod = Pod(self, name, template)
        kubectl = [c for c in chart.containers(template) if c["args"][0] == "create"]
        for container in template["spec"]["initContainers"]:
            if container not in kubectl:
                pod.once(container)
        for container in kubectl:
            assert container["args"][:3] == ["create", "secret", "generic"]
            for argument in container["args"][4:]:
                if match := re.fullmatch(r"--from-file=([^=]+)=(.+)", argument):
                    self.put(container["args"][3], match[1], self.seen(pod, container, match[2]).read_bytes())
                if match := re.fullmatch(r"--from-literal=([^=]+)=(.+)", argument):
                    self.put(container["args"][3], match[1], match[2].encode())

    def seen(self, pod, container, path):
        """What a container of the hook sees at a path."""
        (mount,) = [m for m in container["volumeMounts"] if Path(path).is_relative_to(m["mountPath"])]
        (volume,) = [v for v in pod.spec["volumes"] if v["name"] == mount["name"]]
        if "secret" in volume:
            return self.secret(volume["secret"]["secretName"]) / mount["subPath"]
        return self.folder / "shared" / f"{pod.name}-{mount['name']}" / Path(path).relative_to(mount["mountPath"])

    def known(self):
        """The Secrets that there are, and their keys."""
        return {folder.name: [file.name for file in folder.iterdir()] for folder in (self.folder / "secrets").iterdir()}

    def names(self, workload):
        name, replicas = workload["metadata"]["name"], workload["spec"].get("replicas", 1)
        generation = workload["spec"]["template"]["metadata"]["annotations"]["checksum/config"][:6]
        fixed = workload["kind"] == "StatefulSet"
        return [f"{name}-{i}" if fixed else f"{name}-{generation}-{i}" for i in range(replicas)]

    def start(self, *roles):
        started = []
        for workload in self.workloads(*roles):
            for name in self.names(workload):
                pod = Pod(self, name, workload["spec"]["template"], workload)
                self.pods[name] = pod
                started.append(pod.start())
        return started

    def of(self, role):
        return [pod for pod in self.pods.values() if pod.labels["app.kubernetes.io/component"] == role]

    def roll(self, values):
        """What the controllers do after `helm upgrade`."""
        before = dict(self.pods)
        self.objects = chart.render(values)
        for workload in self.workloads("coordinator", "stage", "encoder", "decoder", "gateway"):
            template, owner = workload["spec"]["template"], workload["metadata"]["name"]
            old = [pod for pod in before.values() if pod.owner["metadata"]["name"] == owner]
            if old and old[0].template["metadata"]["annotations"] == template["metadata"]["annotations"]:
                continue
            for name, leaving in zip(reversed(self.names(workload)), reversed(old)):
                if workload["kind"] == "Deployment":  # maxSurge 1, maxUnavailable 0
                    self.pods[name] = Pod(self, name, template, workload).start().ready()
                    leaving.stop()
                    del self.pods[leaving.name]
                else:
                    leaving.stop()
                    self.pods[name] = Pod(self, name, template, workload).start().ready()

    def status(self):
        """`janus status`, as NOTES.txt tells to ask for it."""
        leader = self.of("coordinator")[0]
        papers = ["--tls-ca=/etc/janus/tls/ca.crt", "--tls-cert=/etc/janus/tls/tls.crt", "--tls-key=/etc/janus/tls/tls.key"]
        papers.append("--api-key-file=/etc/janus/operator/key")
        text = self.engine.docker("exec", leader.name, "janus", "status", "--endpoint=127.0.0.1:7070", "--json", *papers, check=False)
        return json.loads(text) if text.startswith("{") else None

    def snapshot(self):
        """docs/backup.md: a snapshot, by the etcdctl of a member."""
        tls = ["--cacert", "/etc/janus/tls/ca.crt", "--cert", "/etc/janus/tls/tls.crt", "--key", "/etc/janus/tls/tls.key"]
        member = self.of("etcd")[0]
        self.engine.docker("exec", member.name, "etcdctl", *tls, "snapshot", "save", "/var/lib/etcd/backup.db")
        kept = self.folder / "backup.db"
        shutil.copy(self.folder / f"claims/data-{member.name}/backup.db", kept)
        return kept

    def restore(self, snapshot):
        """docs/backup.md: every member from the same snapshot, after its data is gone."""
        for member in self.of("etcd"):
            claim = self.folder / f"claims/data-{member.name}"
            shutil.rmtree(claim)
            claim.mkdir()
            shutil.copy(snapshot, claim)
            said = chart.flags(member.container)
            flags = [f"--{key}={said[key].replace('$(POD_NAME)', member.name)}"
                     for key in ("name", "initial-cluster", "initial-cluster-token", "initial-advertise-peer-urls", "data-dir")]
            mount = ["-v", f"{claim}:/var/lib/etcd", "--network", "none"]
            # It wants to resolve the members' names, to whatever.
            mount += [f"--add-host={name}:127.0.0.1" for name in re.findall(r"//([^:,]+)", said["initial-cluster"])]
            self.engine.docker("run", "--rm", "--entrypoint", "etcdutl", *mount, member.container["image"], "snapshot", "restore",
                               f"/var/lib/etcd/{snapshot.name}", *flags)
            run("chown", "-R", "65532:65532", claim)

    def microbatches(self):
        status = self.status()
        return sum(p["microbatches"] for p in status["pipelines"]) if status else 0


class Paint(threading.Thread):
    """`helm test`, again and again under names of their own."""

    def __init__(self, cluster, name, rounds=1):
        super().__init__(daemon=True)
        self.cluster, self.title, self.rounds, self.over = cluster, name, rounds, threading.Event()
        self.done, self.error = 0, None

    def run(self):
        try:
            while self.done < self.rounds or not (self.rounds or self.over.is_set()):
                template = next(o for o in self.cluster.objects if o["kind"] == "Pod")
                pod = Pod(self.cluster, f"{self.title}-{self.done}", template)
                pod.once(pod.container)
                self.done += 1
        except Exception as error:  # told by end()
            self.error = error

    def end(self):
        """Waits for the picture that is being painted."""
        self.over.set()
        self.join(LONG)
        if self.error:
            raise self.error
        if self.is_alive():
            raise Failed(f"{self.title} does not end")
        return self.done


KEPT = []


def step(what):
    """A promise that was kept."""
    KEPT.append(what)
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", flush=True)


def main():
    programs, etcd = os.environ["JANUS_DOCKER"], Path(os.environ["JANUS_ETCD"])
    with tempfile.TemporaryDirectory(prefix="janus-pods-") as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        (folder / "engine").mkdir()
        engine = Engine(folder / "engine", programs)
        try:
            engine.image(os.environ["JANUS"], "janus:here")
            engine.etcd_image([etcd / "etcd", etcd / "etcdctl", etcd / "etcdutl"], "etcd:here")
            step("the images are built, from deploy/Dockerfile")
            promises(Cluster(engine, folder, VALUES))
        finally:
            engine.stop()
    print(f"{len(KEPT)} passed, 0 failed")


def promises(cluster):
    engine = cluster.engine
    cluster.secrets()
    cluster.certificates(cluster.objects, "certificates")
    authority, lost = (cluster.secret(f"demo-janus-tls-{name}") for name in ("ca", "gateway"))
    shutil.rmtree(lost)
    cluster.certificates(chart.render_beside(cluster.known(), VALUES), "certificates-again")
    assert (lost / "ca.crt").read_bytes() == (authority / "ca.crt").read_bytes()
    step("the Job made certificates, and one that was lost again, by the same authority")

    pods = cluster.start("etcd")
    pods += cluster.start("coordinator", "stage", "encoder", "decoder", "gateway")
    for pod in pods:
        pod.ready()
    step(f"{len(pods)} pods pass their probes: {' '.join(pod.name for pod in pods)}")
    until("the pipeline is on three stages", lambda: [len(p["stages"]) for p in (cluster.status() or {"pipelines": []})["pipelines"]] == [3])

    test = Paint(cluster, "test")
    test.start()
    test.end()
    step("helm test painted the picture that it has to be")

    if cluster.of("gateway"):
        (gateway,) = cluster.of("gateway")
        body = json.dumps({"prompt": "a red circle left of a blue square", "seed": 0, "response_format": "b64_json"}).encode()
        ask = urllib.request.Request(f"https://{gateway.address}:8080/v1/images/generations", body, {
            "content-type": "application/json",
            "authorization": f"Bearer {(cluster.secret('demo-janus-operator') / 'key').read_text()}",
        })
        # Whoever signed the chart's certificates; the address is not the name in them.
        trust = ssl.create_default_context(cafile=cluster.secret("demo-janus-tls-gateway") / "ca.crt")
        trust.check_hostname = False
        with urllib.request.urlopen(ask, timeout=LONG, context=trust) as answer:
            assert json.load(answer)["data"][0]["b64_json"]
        step("the gateway paints too")

    snapshot = cluster.snapshot()
    before = cluster.microbatches()
    painting = Paint(cluster, "loss")
    painting.start()
    until("a picture is under way", lambda: cluster.microbatches() > before + 8)
    lost = cluster.of("stage")[1]
    engine.docker("kill", lost.name)
    assert painting.is_alive(), "the picture was done before its stage was killed"
    painting.end()
    step("a stage was killed in the middle of a picture, which has every bit that it has to have")
    engine.docker("start", lost.name)
    lost.ready()

    loads = [Paint(cluster, f"load-{i}", rounds=0) for i in range(3)]
    for load in loads:
        load.start()
    cluster.roll(chart.merged(VALUES, {"coordinator": {"ttlSeconds": 6}}))
    painted = sum(load.end() for load in loads)
    assert painted > len(loads), f"only {painted} pictures were painted meanwhile"
    step(f"every role was replaced while {painted} pictures were painted, and none failed")

    nodes = [pod for role in ("gateway", "coordinator", "stage", "encoder", "decoder") for pod in cluster.of(role)]
    engine.docker("kill", *[pod.name for pod in [*nodes, *cluster.of("etcd")]])
    cluster.restore(snapshot)
    engine.docker("start", *[pod.name for pod in cluster.of("etcd")])
    for pod in cluster.of("etcd"):
        pod.ready()
    engine.docker("start", *[pod.name for pod in nodes])
    for pod in nodes:
        pod.ready()
    painting = Paint(cluster, "restored")
    painting.start()
    painting.end()
    step("etcd's data was lost, and an old snapshot made the cluster paint again")


STARTED = time.monotonic()

if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
