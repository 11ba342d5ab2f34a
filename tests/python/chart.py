"""Holds helm/janus to its promises, with Helm's own library and the schemas of Kubernetes.

`chart.py` runs the tests, `chart.py render VALUES.yaml` prints the rendered objects as JSON, for tests that start what they
say, `chart.py readme` writes the chart's README from values.yaml. JANUS is the program under test.
"""

import base64
import copy
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/janus"
PREVIOUS = ROOT / "tests/data/chart/janus-0.1.0.tgz"
MATRIX = sorted((CHART / "ci").glob("*.yaml"))
# Image volumes came with 1.31.
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"]
FOREIGN = {
    "cert-manager.io/v1": {"Issuer", "Certificate"},
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PrometheusRule"},
    "gateway.networking.k8s.io/v1": {"HTTPRoute", "GRPCRoute"},
}
ROLES = {"coordinator", "stage", "encoder", "decoder", "gateway"}


def values(name):
    return yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text()) or {}


def merged(base, change):
    """`base` with the keys of `change`, deeply."""
    result = copy.deepcopy(base)
    for key, value in change.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def render(values, chart=CHART):
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values, name="demo", namespace="paint")
    objects = []
    for name, text in files.items():
        if not name.endswith(".txt"):
            objects += [document for document in yaml.safe_load_all(text) if document]
    return objects


def fails(values):
    """What the chart says against the values."""
    try:
        with helm.Chart.load(CHART) as chart:
            chart.validate_schema(values)
            chart.render(values, name="demo", namespace="paint")
    except helm.HelmError as error:
        return str(error)
    return None


def of(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def name_of(o):
    return f"{o['kind']}/{o['metadata']['name']}"


def role(o):
    return o["metadata"]["labels"].get("app.kubernetes.io/component")


def pod_specs(objects):
    """(owner, pod template or pod)"""
    for o in objects:
        if o["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield o, o["spec"]["template"]
        elif o["kind"] == "Pod":
            yield o, o


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


def flags(container):
    """--key=value arguments."""
    return dict(arg[2:].split("=", 1) for arg in container.get("args", []) if arg.startswith("--") and "=" in arg)


def mebibytes(quantity):
    number, unit = re.fullmatch(r"([0-9.]+)(Mi|Gi)", quantity).groups()
    return float(number) * (1024 if unit == "Gi" else 1)


class EveryValuesFile(unittest.TestCase):
    """What holds whatever the values are."""

    def each(self):
        self.assertGreaterEqual(len(MATRIX), 6)
        for path in MATRIX:
            with self.subTest(values=path.name):
                yield path.stem, render(values(path.stem))

    def test_lint_is_silent(self):
        for path in MATRIX:
            report = helm.lint(CHART, values(path.stem), strict=True, namespace="paint", kube_version="v1.33.0")
            self.assertEqual(report["errors"], [], path.name)
            self.assertEqual([m for m in report["messages"] if m["severity"] > 1], [], path.name)

    def test_objects_are_valid_for_every_kubernetes(self):
        for name, objects in self.each():
            for o in objects:
                if o["apiVersion"] in FOREIGN:
                    self.assertIn(o["kind"], FOREIGN[o["apiVersion"]])
                    continue
                for version in VERSIONS:
                    if version == "1.30" and name == "gpu":
                        continue
                    try:
                        kubernetes_validate.validate(o, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        self.fail(f"{name}: {name_of(o)} for {version}: {error.message} at {list(error.path)}")

    def test_names_are_unique_and_short(self):
        for _, objects in self.each():
            names = [name_of(o) for o in objects]
            self.assertEqual(sorted(set(names)), sorted(names))
            self.assertTrue(all(len(o["metadata"]["name"]) <= 63 for o in objects))

    def test_pods_are_restricted(self):
        for _, objects in self.each():
            for owner, template in pod_specs(objects):
                spec, where = template["spec"], name_of(owner)
                if owner["kind"] == "Job":
                    self.assertTrue(spec["serviceAccountName"], where)
                else:
                    self.assertIs(spec["automountServiceAccountToken"], False, where)
                    self.assertNotIn("serviceAccountName", spec, where)
                self.assertIs(spec["securityContext"]["runAsNonRoot"], True, where)
                self.assertGreater(spec["securityContext"]["runAsUser"], 0, where)
                self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, where)
                self.assertFalse(any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), where)
                for container in containers(template):
                    security = container["securityContext"]
                    self.assertIs(security["allowPrivilegeEscalation"], False, where)
                    self.assertIs(security["readOnlyRootFilesystem"], True, where)
                    self.assertEqual(security["capabilities"], {"drop": ["ALL"]}, where)
                    self.assertIn("memory", container["resources"]["limits"], where)
                    self.assertIn("memory", container["resources"]["requests"], where)

    def test_probes_ask_a_role_for_itself_and_never_for_its_peers(self):
        for _, objects in self.each():
            for owner, template in pod_specs(objects):
                if role(owner) not in ROLES:
                    continue
                container = template["spec"]["containers"][0]
                probes = [container[f"{which}Probe"] for which in ("startup", "liveness", "readiness")]
                if role(owner) == "gateway":
                    self.assertEqual([p["httpGet"]["path"] for p in probes], ["/healthz", "/healthz", "/readyz"])
                    encrypted = "tls-ca" in flags(container)
                    self.assertEqual({p["httpGet"]["scheme"] for p in probes}, {"HTTPS" if encrypted else "HTTP"})
                    continue
                self.assertEqual([p["grpc"]["service"] for p in probes], ["started", "live", "ready"])
                port = flags(container)["health"].rsplit(":", 1)[1]
                self.assertTrue(all(str(p["grpc"]["port"]) == port for p in probes))

    def test_a_pod_has_time_for_the_longest_picture(self):
        for _, objects in self.each():
            for owner, template in pod_specs(objects):
                if role(owner) not in ROLES:
                    continue
                container = template["spec"]["containers"][0]
                pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
                grace = int(flags(container).get("grace", 60))
                self.assertGreater(template["spec"]["terminationGracePeriodSeconds"], pause + grace, name_of(owner))

    def test_budgets_exist_where_there_is_more_than_one(self):
        for _, objects in self.each():
            budgets = {o["metadata"]["name"]: o["spec"] for o in of(objects, "PodDisruptionBudget")}
            scalers = {o["spec"]["scaleTargetRef"]["name"]: o["spec"]["minReplicas"] for o in of(objects, "HorizontalPodAutoscaler")}
            for o in of(objects, "Deployment") + of(objects, "StatefulSet"):
                name = o["metadata"]["name"]
                least = scalers.get(name, o["spec"].get("replicas"))
                # A budget's name is its set's, without the word before a pool's.
                self.assertEqual(name in budgets, least > 1, name)
                if name in budgets:
                    selector = budgets[name]["selector"]["matchLabels"]
                    self.assertEqual(selector, o["spec"]["selector"]["matchLabels"])
                    self.assertEqual(budgets[name]["maxUnavailable"], 1)
                # Who scales does not fight with who installs.
                self.assertEqual("replicas" in o["spec"], name not in scalers, name)

    def test_replicas_are_spread(self):
        for _, objects in self.each():
            for o in of(objects, "Deployment") + of(objects, "StatefulSet"):
                spread = o["spec"]["template"]["spec"]["topologySpreadConstraints"]
                keys = {c["topologyKey"] for c in spread}
                self.assertEqual(keys, {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}, name_of(o))
                pod = o["spec"]["template"]["metadata"]["labels"]
                for c in spread:
                    self.assertLessEqual(c["labelSelector"]["matchLabels"].items(), pod.items(), name_of(o))

    def test_stage_pools_are_stateful_and_found_before_they_are_ready(self):
        for _, objects in self.each():
            services = {o["metadata"]["name"]: o["spec"] for o in of(objects, "Service")}
            pools = [o for o in of(objects, "StatefulSet") if role(o) == "stage"]
            self.assertTrue(pools)
            for o in pools:
                spec, template = o["spec"], o["spec"]["template"]
                service = services[spec["serviceName"]]
                self.assertEqual(service["clusterIP"], "None")
                self.assertIs(service["publishNotReadyAddresses"], True)
                self.assertLessEqual(service["selector"].items(), template["metadata"]["labels"].items())
                self.assertEqual(spec["podManagementPolicy"], "Parallel")
                advertise = flags(template["spec"]["containers"][0])["advertise"]
                self.assertTrue(advertise.startswith(f"$(POD_NAME).{spec['serviceName']}.paint.svc:"), advertise)
                near = template["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
                self.assertEqual(near["podAffinityTerm"]["topologyKey"], "topology.kubernetes.io/zone")
                self.assertIn("janus.io/pool", near["podAffinityTerm"]["labelSelector"]["matchLabels"])

    def test_services_lead_to_pods_and_ports_that_exist(self):
        for _, objects in self.each():
            pods = [(t["metadata"]["labels"], {p["name"] for c in t["spec"]["containers"] for p in c.get("ports", [])})
                    for o, t in pod_specs(objects) if o["kind"] != "Job"]
            for service in of(objects, "Service"):
                chosen = [ports for labels, ports in pods if service["spec"]["selector"].items() <= labels.items()]
                self.assertTrue(chosen, name_of(service))
                for port in service["spec"]["ports"]:
                    self.assertTrue(any(port["targetPort"] in ports for ports in chosen), name_of(service))

    def test_every_role_speaks_mutual_tls_or_says_that_it_does_not(self):
        for name, objects in self.each():
            mode = values(name).get("tls", {}).get("mode", "job")
            for owner, template in pod_specs(objects):
                if role(owner) not in ROLES | {"test", "etcd"}:
                    continue
                container, where = template["spec"]["containers"][0], f"{name}: {name_of(owner)}"
                said = flags(container)
                mounts = {m["name"]: m for m in container["volumeMounts"]}
                secrets = {v["name"]: v["secret"]["secretName"] for v in template["spec"].get("volumes", []) if "secret" in v}
                if mode == "none":
                    self.assertNotIn("tls", mounts, where)
                    self.assertFalse([key for key in said if key.startswith("tls-")], where)
                    continue
                self.assertEqual((mounts["tls"]["mountPath"], mounts["tls"]["readOnly"]), ("/etc/janus/tls", True), where)
                if role(owner) == "etcd":
                    self.assertEqual((said["client-cert-auth"], said["peer-client-cert-auth"]), ("true", "true"))
                else:
                    files = {key: said[f"tls-{key}"] for key in ("ca", "cert", "key")}
                    self.assertEqual(files, {"ca": "/etc/janus/tls/ca.crt", "cert": "/etc/janus/tls/tls.crt", "key": "/etc/janus/tls/tls.key"})
                    self.assertNotIn("--insecure", container["args"], where)
                bearer = "client" if role(owner) == "test" else role(owner)
                self.assertTrue(secrets["tls"].endswith(f"-{bearer}"), where)
                if "etcd" in said and role(owner) in ROLES:
                    self.assertTrue(all(url.startswith("https://") for url in said["etcd"].split(",")), where)
                    self.assertIn("etcd-ca", said, where)

    def test_nobody_is_let_in_without_a_key_but_where_nothing_is_encrypted(self):
        for name, objects in self.each():
            given = values(name).get("operatorKey", {}).get("existingSecret")
            plain = values(name).get("tls", {}).get("mode") == "none"
            secrets = {o["metadata"]["name"]: o for o in of(objects, "Secret")}
            for owner, template in pod_specs(objects):
                if role(owner) not in ("coordinator", "test"):
                    continue
                flag = "operator-key-file" if role(owner) == "coordinator" else "api-key-file"
                self.assertEqual(flag in flags(template["spec"]["containers"][0]), not plain)
                if not plain:
                    (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "operator"]
                    self.assertEqual(given is None, volume["secret"]["secretName"] in secrets)
            self.assertEqual(len(secrets), 0 if plain or given else 1)
            for secret in secrets.values():
                self.assertEqual(secret["metadata"]["annotations"]["helm.sh/resource-policy"], "keep")
                self.assertGreaterEqual(len(base64.b64decode(secret["data"]["key"])), 32)

    def test_who_needs_a_certificate_gets_one(self):
        for name, objects in self.each():
            wanted = {v["secret"]["secretName"] for _, t in pod_specs(objects) for v in t["spec"].get("volumes", [])
                      if v["name"] == "tls"}
            mode = values(name).get("tls", {}).get("mode", "job")
            if mode == "certManager":
                made = {o["spec"]["secretName"] for o in of(objects, "Certificate") if not o["spec"].get("isCA")}
                self.assertEqual(wanted, made)
                for o in of(objects, "Certificate"):
                    if role(o) in ROLES:
                        self.assertRegex(o["spec"]["uris"][0], rf"^janus://[^/]+/{role(o)}/")
            elif mode == "job":
                (job,) = of(objects, "Job")
                made = {c["args"][3] for c in job["spec"]["template"]["spec"]["containers"]}
                self.assertEqual(wanted, made)
            elif mode == "none":
                self.assertEqual(wanted, set())

    def test_a_checkpoint_is_verified_before_anything_starts(self):
        for name, objects in self.each():
            source = values(name).get("model", {}).get("source", "builtin")
            for owner, template in pod_specs(objects):
                if role(owner) not in ROLES - {"gateway"}:
                    continue
                names = [c["name"] for c in template["spec"].get("initContainers", [])]
                expected = {"builtin": [], "pull": ["pull", "verify"]}.get(source, ["verify"])
                self.assertEqual(names, expected, f"{name}: {name_of(owner)}")
                model = flags(template["spec"]["containers"][0])["model"]
                if source != "builtin":
                    verify = template["spec"]["initContainers"][-1]["args"]
                    self.assertEqual(verify, ["inspect", "--model", model, "--digest", values(name)["model"]["digest"]])

    def test_configuration_is_in_the_pods_checksum(self):
        for name, objects in self.each():
            changed = render(merged(values(name), {"coordinator": {"ttlSeconds": 17}, "externalEtcd": {"tlsSecret": "other"}}))
            sums = [{name_of(o): t["metadata"]["annotations"]["checksum/config"] for o, t in pod_specs(rendered)
                     if role(o) in ROLES - {"gateway"}} for rendered in (objects, changed)]
            self.assertTrue(all(sums[0][key] != sums[1][key] for key in sums[0]), sums)


class Edges(unittest.TestCase):
    """Who may talk to whom."""

    def reached(self, objects):
        """{(from role, to role, port)} that ingress rules allow between the chart's pods, after checking egress says the same."""
        allowed = {"Ingress": set(), "Egress": set()}
        for o in of(objects, "NetworkPolicy"):
            spec = o["spec"]
            self.assertEqual(sorted(spec["policyTypes"]), ["Egress", "Ingress"])
            me = spec["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
            for kind, key, peers in (("Ingress", "ingress", "from"), ("Egress", "egress", "to")):
                for rule in spec.get(key, []):
                    self.assertTrue(rule.get("ports"), f"{name_of(o)} opens every port")
                    for peer in rule.get(peers, []):
                        roles = [e["values"] for e in peer.get("podSelector", {}).get("matchExpressions", [])]
                        for other in roles[0] if roles else []:
                            pair = (other, me) if kind == "Ingress" else (me, other)
                            allowed[kind] |= {(*pair, int(p["port"])) for p in rule["ports"]}
        self.assertEqual(allowed["Ingress"], allowed["Egress"])
        return allowed["Ingress"]

    def test_exactly_the_needed_edges_are_open(self):
        workers = ["stage", "encoder", "decoder"]
        expected = {("gateway", "coordinator", 7070), ("test", "coordinator", 7070), ("coordinator", "coordinator", 7070),
                    ("etcd", "etcd", 2380), ("coordinator", "etcd", 2379)}
        expected |= {("coordinator", w, 7070) for w in workers} | {(w, "etcd", 2379) for w in workers}
        expected |= {(a, b, 7070) for a in workers for b in [*workers, "coordinator"]}
        self.assertEqual(self.reached(render({})), expected)

    def test_what_is_not_named_is_denied(self):
        objects = render({})
        deny = next(o for o in of(objects, "NetworkPolicy") if o["metadata"]["name"].endswith("default-deny"))
        self.assertEqual(set(deny["spec"]) - {"podSelector", "policyTypes"}, set())
        for owner, template in pod_specs(objects):
            if owner["kind"] == "Job":
                continue
            self.assertLessEqual(deny["spec"]["podSelector"]["matchLabels"].items(), template["metadata"]["labels"].items())

    def test_an_etcd_elsewhere_is_reached_by_its_port_alone(self):
        objects = render(values("external"))
        self.assertFalse([e for e in self.reached(objects) if "etcd" in e])
        policy = next(o for o in of(objects, "NetworkPolicy") if o["metadata"]["name"] == "demo-janus-stage")
        self.assertIn([{"port": 2379, "protocol": "TCP"}] * 2, [rule["ports"] for rule in policy["spec"]["egress"]])

    def test_only_clients_that_were_named_reach_the_doors(self):
        for o in of(render(values("large")), "NetworkPolicy"):
            if o["metadata"]["name"] in ("demo-janus-gateway", "demo-janus-coordinator"):
                outside = [p for rule in o["spec"]["ingress"] for p in rule["from"] if "namespaceSelector" in p]
                self.assertEqual(outside, values("large")["networkPolicy"]["clients"])
                self.assertNotIn({"podSelector": {}}, [p for rule in o["spec"]["ingress"] for p in rule["from"]])


class Mistakes(unittest.TestCase):
    """A mistake in the values is named."""

    def test_an_unknown_key_is_named_wherever_it_is(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        places = 0

        def visit(node, path):
            nonlocal places
            if node.get("type") == "object" and "properties" in node:
                places += 1
                self.assertIs(node.get("additionalProperties"), False, path)
                change = {"zzz": 1}
                for key in reversed(path):
                    change = {key: change}
                said = fails(change)
                self.assertTrue(said and "zzz" in said, f"{path}: {said}")
                for key, child in node.get("properties", {}).items():
                    visit(child, [*path, key])

        visit(schema, [])
        self.assertGreater(places, 30)
        self.assertIn("zzz", fails({"pools": [{"name": "a", "replicas": 1, "zzz": 1}]}))

    def test_a_wrong_type_is_named(self):
        for change, key in [
            ({"coordinator": {"replicas": "two"}}, "replicas"),
            ({"coordinator": {"replicas": 0}}, "replicas"),
            ({"pools": {"name": "a"}}, "pools"),
            ({"pools": [{"name": "A", "replicas": 1}]}, "name"),
            ({"pools": [{"name": "a"}]}, "replicas"),
            ({"model": {"kv": "f16"}}, "kv"),
            ({"model": {"digest": "abc"}}, "digest"),
            ({"tls": {"mode": "yes"}}, "mode"),
            ({"networkPolicy": {"enabled": "no"}}, "enabled"),
            ({"decoder": {"memory": "lots"}}, "memory"),
            ({"externalEtcd": {"endpoints": ["etcd.example.org"]}}, "endpoints"),
            ({"image": {"digest": "sha256:12"}}, "digest"),
        ]:
            said = fails(change)
            self.assertTrue(said and key in said, f"{change}: {said}")

    def test_values_that_do_not_go_together_are_named(self):
        for change, words in [
            ({"model": {"preset": "janus-pro-1b"}}, ["model.source", "janus-pro-1b"]),
            ({"model": {"source": "pvc", "preset": "janus-pro-1b", "pvc": {"claimName": "x"}}}, ["model.digest", "janus inspect"]),
            ({"model": {"source": "pvc", "digest": "1" * 64}}, ["model.pvc.claimName"]),
            ({"model": {"source": "hostPath", "digest": "1" * 64}}, ["model.hostPath.path"]),
            ({"model": {"source": "image", "digest": "1" * 64}}, ["model.image.reference"]),
            ({"model": {"source": "pull", "digest": "1" * 64}}, ["model.pull.repository"]),
            ({"etcd": {"bundled": False}}, ["externalEtcd.endpoints"]),
            ({"pools": [{"name": "a", "replicas": 1}, {"name": "a", "replicas": 2}]}, ["pools", "called a"]),
            ({"ingress": {"enabled": True}}, ["ingress.host"]),
            ({"gatewayApi": {"enabled": True}}, ["gatewayApi.parentRefs"]),
        ]:
            said = fails(change)
            self.assertTrue(said and all(word in said for word in words), f"{change}: {said}")

    def test_a_removed_key_says_what_took_its_place(self):
        for key, value, now in (("metricsPort", 9000, "metrics.port"), ("apiKey", {"existingSecret": "x"}, "operatorKey")):
            said = fails({key: value})
            self.assertTrue(said and f"{key} was removed" in said and now in said, said)


class Choices(unittest.TestCase):
    """What single values do."""

    def test_scaling_looks_at_load(self):
        scalers = {o["metadata"]["name"]: o for o in of(render(values("large")), "HorizontalPodAutoscaler")}
        self.assertEqual(set(scalers), {f"demo-janus-{n}" for n in ("stage-east", "encoder", "decoder", "gateway")})
        east = {m["type"]: m for m in scalers["demo-janus-stage-east"]["spec"]["metrics"]}
        self.assertEqual(east["Pods"]["pods"]["metric"]["name"], "janus_stage_busy_ratio")
        self.assertEqual(east["Pods"]["pods"]["target"]["averageValue"], "800m")
        self.assertEqual(east["Object"]["object"]["metric"]["name"], "janus_queue_row_steps")
        self.assertEqual(scalers["demo-janus-stage-east"]["spec"]["scaleTargetRef"]["kind"], "StatefulSet")

    def test_gpus_are_asked_for_where_there_are_some(self):
        for o in of(render(values("gpu")), "StatefulSet"):
            if role(o) == "stage":
                resources = o["spec"]["template"]["spec"]["containers"][0]["resources"]
                self.assertEqual(resources["limits"]["nvidia.com/gpu"], "1")
                self.assertTrue(o["spec"]["template"]["spec"]["tolerations"])

    def test_pools_make_pipelines(self):
        objects = render(values("gpu"))
        (coordinator,) = [o for o in of(objects, "Deployment") if role(o) == "coordinator"]
        said = flags(coordinator["spec"]["template"]["spec"]["containers"][0])
        self.assertEqual(said["pipelines"], "2")
        self.assertEqual(len([o for o in of(objects, "PodDisruptionBudget") if role(o) == "stage"]), 2)

    def test_doors_lead_to_services_that_exist(self):
        objects = render(values("large"))
        services = {o["metadata"]["name"]: {p["port"] for p in o["spec"]["ports"]} for o in of(objects, "Service")}
        for route in of(objects, "HTTPRoute") + of(objects, "GRPCRoute"):
            for rule in route["spec"]["rules"]:
                for backend in rule["backendRefs"]:
                    self.assertIn(int(backend["port"]), services[backend["name"]])
        self.assertEqual(len(of(objects, "Ingress")), 2)
        for o in of(objects, "Ingress"):
            self.assertIn(o["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"], services)

    def test_memory_is_what_the_planner_asks_for(self):
        for preset, source in (("shapes", {}), ("janus-pro-1b", {"source": "pvc"}), ("janus-pro-7b", {"source": "pvc"})):
            for weights in ("bf16", "q8", "q4", "f32"):
                for stages in (1, 2, 4):
                    model = {"preset": preset, "weights": weights, "kv": "bf16", "digest": "1" * 64, "pvc": {"claimName": "m"}, **source}
                    objects = render({"model": model, "pools": [{"name": "a", "replicas": stages}]})
                    (pool,) = [o for o in of(objects, "StatefulSet") if role(o) == "stage"]
                    container = pool["spec"]["template"]["spec"]["containers"][0]
                    asked = mebibytes(container["resources"]["requests"]["memory"])
                    needed = planned(preset, weights, stages, 16384)
                    self.assertGreater(asked, needed, (preset, weights, stages))
                    self.assertLess(asked, 1.6 * needed + 600, (preset, weights, stages))
                    self.assertEqual(flags(container)["memory"], container["resources"]["requests"]["memory"] + "B")

    def test_the_test_pod_expects_the_picture_of_the_built_in_model(self):
        (pod,) = of(render({}), "Pod")
        expected = flags(pod["spec"]["containers"][0])["expect"]
        with tempfile.TemporaryDirectory() as folder:
            command = [os.environ["JANUS"], "generate", pod["spec"]["containers"][0]["args"][1], "--json", "-o", f"{folder}/x.png"]
            painted = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        self.assertEqual(painted["images"][0]["sha256"], expected)


def planned(preset, weights, stages, positions):
    """Mebibytes of the largest stage, as `janus plan` counts them."""
    nodes = "".join(f"  - {{id: n{i}, memory: 400GiB, read_gb_s: 40, gflops: 900}}\n" for i in range(stages))
    text = f"model: {preset}\nweights: {weights}\nkv: bf16\nstages: {stages}\nkv_positions: {positions}\nnodes:\n{nodes}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        said = subprocess.run([os.environ["JANUS"], "plan", file.name, "--json"], check=True, capture_output=True, timeout=120)
    return max(s["memory_bytes"] for s in json.loads(said.stdout)["plan"]["pipelines"][0]["stages"]) / 2**20


# Memory in GiB, GB/s, GFLOP/s, milliseconds of a VQ decode, dollars an hour. GPUs are as on paper.
MACHINES = {
    "": (64, 40, 900, 3300, 0.4),
    "24 GB, 300 GB/s": (22, 300, 60_000, 30, 0.8),
    "80 GB, 2000 GB/s": (75, 2000, 300_000, 10, 2.0),
    "141 GB, 4800 GB/s": (130, 4800, 900_000, 10, 4.0),
}


def capacity(model, weights, stages, machine=""):
    """A row of a table in docs/sizing.md."""
    memory, read, gflops, decode, price = MACHINES[machine]
    node = f"memory: {memory}GiB, read_gb_s: {read}, gflops: {gflops}"
    nodes = "".join(f"  - {{id: n{i}, {node}}}\n" for i in range(stages))
    text = f"model: {model.lower()}\nweights: {weights}\nkv: bf16\nstages: {stages}\npictures: 8\nvq_decode_ms: {decode}\nnodes:\n{nodes}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        said = subprocess.run([os.environ["JANUS"], "plan", file.name, "--json"], check=True, capture_output=True, timeout=120)
    (pipeline,) = json.loads(said.stdout)["estimate"]["pipelines"]
    hourly = pipeline["pictures_per_hour"]
    alone = pipeline["step_ms"] * 0.576
    if machine:
        return f"| {machine} at ${price:.2f} an hour | {model} | {stages} | {alone:.1f} s | {hourly:.0f} | ${price * stages / hourly:.5f} |"
    return f"| {model} | {weights} | {stages} | {alone:.0f} s | {hourly:.0f} | ${price * stages / hourly:.4f} |"


class Documents(unittest.TestCase):
    """What documents say in numbers."""

    def test_the_capacity_table_is_what_the_planner_says(self):
        rows = [line for line in (ROOT / "docs/sizing.md").read_text().splitlines() if line.startswith("| Janus-Pro") and "$" in line]
        self.assertGreater(len(rows), 10)
        for row in rows:
            model, weights, stages = (cell.strip() for cell in row.split("|")[1:4])
            self.assertEqual(row, capacity(model, weights, int(stages)))

    def test_the_bounds_of_gpu_nodes_are_what_the_planner_says(self):
        rows = [line for line in (ROOT / "docs/sizing.md").read_text().splitlines() if " an hour | Janus" in line]
        self.assertGreater(len(rows), 3)
        for row in rows:
            machine, model, stages = (cell.strip() for cell in row.split("|")[1:4])
            self.assertEqual(row, capacity(model, "bf16", int(stages), machine.split(" at $")[0]))


class Releases(unittest.TestCase):
    """Installing and upgrading, as far as Helm's library goes without an API server."""

    FIXED = {
        "StatefulSet": ["serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates"],
        "Deployment": ["selector"],
        "Service": ["clusterIP"],
    }

    def test_the_previous_version_upgrades_in_place(self):
        for change in ({}, {"tls": {"mode": "none"}, "pools": [{"name": "a", "replicas": 3}, {"name": "b", "replicas": 1}]}):
            old, new = render(change, PREVIOUS), render(change)
            index = {name_of(o): o for o in new}
            compared = 0
            for o in old:
                for key in self.FIXED.get(o["kind"], []):
                    self.assertIn(name_of(o), index)
                    self.assertEqual(o["spec"].get(key), index[name_of(o)]["spec"].get(key), f"{name_of(o)}: {key} cannot change")
                    compared += 1
            self.assertGreater(compared, 15)

    def test_the_present_version_is_newer_than_the_previous(self):
        with helm.Chart.load(PREVIOUS) as old, helm.Chart.load(CHART) as new:
            versions = [tuple(map(int, chart.version.split("."))) for chart in (old, new)]
            self.assertLess(versions[0], versions[1])

    def test_helm_installs_in_a_dry_run(self):
        with helm.Config(namespace="paint", storage_driver="memory", kubeconfig_content=NOWHERE) as config:
            for path in MATRIX:
                with helm.Chart.load(CHART) as chart:
                    release = config.install(chart, "demo", values(path.stem), namespace="paint", dry_run="client")
                self.assertIn("kind: StatefulSet", release["manifest"])

    def test_the_readme_describes_every_value(self):
        self.assertEqual((CHART / "README.md").read_text(), readme(), "write it anew: tests/python/chart.py readme")


NOWHERE = """
apiVersion: v1
kind: Config
clusters: [{name: x, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: x, context: {cluster: x, user: x}}]
current-context: x
users: [{name: x, user: {}}]
"""


class Watching(unittest.TestCase):
    """Alerts and dashboard."""

    def names(self):
        """Metrics that deploy/METRICS.md describes, and the ones that rules record."""
        text = (ROOT / "deploy/METRICS.md").read_text()
        names = set(re.findall(r"`((?:janus|gen_ai|process)_[a-z_]+)`", text))
        self.assertGreater(len(names), 40)
        names |= {name + suffix for name in list(names) if name.endswith("_seconds") for suffix in ("_bucket", "_sum", "_count")}
        rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
        return names | {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}

    def expressions(self):
        rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert", rule.get("record")), rule["expr"]
        for panel in json.loads((ROOT / "deploy/grafana/janus.json").read_text())["panels"]:
            for target in panel["targets"]:
                yield panel["title"], target["expr"]
        for o in of(render(values("large")), "HorizontalPodAutoscaler"):
            for metric in o["spec"]["metrics"]:
                for source in ("pods", "object"):
                    if source in metric:
                        yield name_of(o), metric[source]["metric"]["name"]

    def test_only_metrics_that_exist_are_asked_for(self):
        known, asked = self.names(), 0
        for place, expression in self.expressions():
            for name in re.findall(r"\b(?:janus|gen_ai|process)_[a-z_]+\b", expression):
                if name == "gen_ai_operation_name":
                    continue
                asked += 1
                self.assertIn(name, known, place)
        self.assertGreater(asked, 40)

    def test_every_alert_has_a_page(self):
        page = (ROOT / "docs/alerts.md").read_text()
        for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    self.assertIn(f"## {rule['alert']}\n", page)

    def test_the_chart_brings_the_same_alerts_and_dashboard(self):
        objects = render(values("large"))
        (rules,) = of(objects, "PrometheusRule")
        self.assertEqual(rules["spec"], yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text()))
        (board,) = [o for o in of(objects, "ConfigMap") if o["metadata"]["name"].endswith("-dashboard")]
        self.assertEqual(json.loads(board["data"]["janus.json"]), json.loads((ROOT / "deploy/grafana/janus.json").read_text()))


def readme():
    """README.md as helm-docs would write it: a table of every value with its default and the comment in values.yaml."""
    rows, comment, path = [], [], []
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            comment = [text[5:]]
        elif text.startswith("# @"):
            pass
        elif text.startswith("#") and comment:
            comment.append(text[2:])
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            depth = len(match[1]) // 2
            path[depth:] = [match[2]]
            value = defaults
            for key in path:
                value = value[key] if isinstance(value, dict) and key in value else None
            leaf = not isinstance(value, dict) or not value or "{" in line
            if comment or (leaf and value is not None):
                default = f"`{json.dumps(value)}`" if leaf else ""
                rows.append(f"| `{'.'.join(path)}` | {default} | {' '.join(comment)} |")
            comment = []
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    head = (CHART / "README.md.gotmpl").read_text().replace("{{version}}", chart["version"])
    table = "| key | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    return head.replace("{{values}}\n", table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["render"]:
        print(json.dumps(render(yaml.safe_load(Path(sys.argv[2]).read_text()) or {})))
    elif sys.argv[1:2] == ["readme"]:
        (CHART / "README.md").write_text(readme())
    else:
        unittest.main(verbosity=1)
