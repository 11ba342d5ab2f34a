"""Holds helm/janus to its promises, with Helm's own library and the schemas of Kubernetes.

`chart.py` runs the tests, `chart.py render VALUES.yaml` prints the rendered objects as JSON, for tests that start what they
say, `chart.py readme` writes the chart's README from values.yaml. JANUS is the program under test.
"""

import base64
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
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
    "gateway.networking.k8s.io/v1": {"HTTPRoute", "GRPCRoute", "BackendTLSPolicy"},
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


def render(values, chart=CHART, name="demo"):
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values, name=name, namespace="paint")
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


def render_beside(secrets, values):
    """As in a namespace that has these Secrets, {name: keys}; `render` knows of none."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(CHART, folder, dirs_exist_ok=True)
        helpers = Path(folder) / "templates/_helpers.tpl"
        asks = 'lookup "v1" "Secret" .root.Release.Namespace .name'
        assert asks in helpers.read_text()
        known = json.dumps({name: {"data": dict.fromkeys(keys, "")} for name, keys in secrets.items()})
        helpers.write_text(helpers.read_text().replace(asks, f"get (fromJson `{known}`) .name"))
        return render(values, folder)


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

    def test_long_names_are_cut_and_stay_apart(self):
        pools = [{"name": "p" * 19 + end, "replicas": 2} for end in "ab"]
        for change in ({}, {"tls": {"mode": "certManager"}}):
            objects = render(merged({"pools": pools}, change), name="r" * 53)
            names = [name_of(o) for o in objects]
            self.assertEqual(sorted(set(names)), sorted(names))
            self.assertTrue(all(len(o["metadata"]["name"]) <= 63 for o in objects))
            sets = of(objects, "StatefulSet")
            # With `-` and the hash of a revision it is a label.
            self.assertTrue(all(len(o["metadata"]["name"]) <= 52 for o in sets))
            stages = {o["metadata"]["name"] for o in sets if role(o) == "stage"}
            for kind in ("Service", "PodDisruptionBudget"):
                self.assertLessEqual(stages, {o["metadata"]["name"] for o in of(objects, kind)})
            for o in of(objects, "Certificate"):
                if role(o) == "stage":
                    self.assertLessEqual({f"*.{name}.paint.svc" for name in stages}, set(o["spec"]["dnsNames"]))

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
                grace = int(flags(container)["grace"])
                self.assertGreater(template["spec"]["terminationGracePeriodSeconds"], pause + grace, name_of(owner))

    def test_the_longest_picture_is_that_of_the_model(self):
        rows = (ROOT / "docs/sizing.md").read_text().splitlines()
        alone = {}
        for model, _, _, seconds in (row.split("|")[1:5] for row in rows if row.startswith("| Janus-Pro")):
            if seconds.strip().endswith(" s"):
                preset = model.strip().lower()
                alone[preset] = max(alone.get(preset, 0), float(seconds.strip()[:-2]))
        self.assertEqual(set(alone), {"janus-pro-1b", "janus-pro-7b"})
        for preset, seconds in {**alone, "shapes": 1}.items():
            model = {"preset": preset} if preset == "shapes" else on_claim(preset)
            for said in (0, 500):
                objects = render({"model": model, "drain": {"longestPictureSeconds": said}, **ROUTED})
                graces = {int(flags(t["spec"]["containers"][0])["grace"]) for o, t in pod_specs(objects) if role(o) in ROLES}
                (grace,) = graces
                self.assertEqual(grace, said or (300 if preset == "janus-pro-7b" else 120))
                self.assertGreater(grace, 1.5 * seconds)
                (route,) = of(objects, "HTTPRoute")
                self.assertGreater(int(route["spec"]["rules"][0]["timeouts"]["request"][:-1]), grace)

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

    def test_the_url_of_a_picture_leads_to_the_gateway_that_keeps_it(self):
        seen = [o["spec"]["sessionAffinity"] for _, objects in self.each() for o in of(objects, "Service") if role(o) == "gateway"]
        self.assertTrue(seen and set(seen) == {"ClientIP"}, seen)

    def test_a_service_says_what_its_port_speaks(self):
        for name, objects in self.each():
            plain = values(name).get("tls", {}).get("mode") == "none"
            spoken = {p["name"]: p.get("appProtocol") for o in of(objects, "Service") if role(o) != "etcd"
                      for p in o["spec"]["ports"] if p["name"] in ("grpc", "http")}
            self.assertEqual(spoken.pop("grpc"), "kubernetes.io/h2c" if plain else None, name)
            self.assertIn(spoken.get("http", "http"), ["http"] if plain else ["http", "https"] if not spoken else ["https"], name)

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
                    given = certificate_names(objects)
                    self.assertEqual(bool(given), mode != "existing", where)
                    for flag, bearers in (("client", {"coordinator", "stage", "encoder", "decoder", "etcd"}), ("peer", {"etcd"})):
                        if given:
                            asked = said[f"{flag}-cert-allowed-hostname"]
                            self.assertEqual({bearer for bearer, names in given.items() if asked in names}, bearers, where)
                        else:
                            self.assertNotIn(f"{flag}-cert-allowed-hostname", said, where)
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
                self.assertEqual(job["metadata"]["annotations"]["helm.sh/hook"], "pre-install,pre-upgrade")
                made = {c["args"][3] for c in job["spec"]["template"]["spec"]["containers"]}
                self.assertEqual(wanted, made)
                # The authority is kept before anything that it signed.
                last = job["spec"]["template"]["spec"]["initContainers"][-1]["args"]
                self.assertEqual(last[:3], ["create", "secret", "generic"])
                self.assertTrue(last[3].endswith("-ca") and "--from-file=tls.key=/certificates/ca.key" in last, last)
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


def on_claim(preset, **more):
    """The values of a model that is on a claim."""
    return {"preset": preset, "source": "pvc", "digest": "1" * 64, "pvc": {"claimName": "m"}, **more}


ROUTED = {"gatewayApi": {"enabled": True, "parentRefs": [{"name": "public"}], "grpcHostnames": ["grpc.example.org"]}}


def certificate_names(objects):
    """{role: names in its certificate}"""
    names = {role(o): o["spec"]["dnsNames"] for o in of(objects, "Certificate") if role(o)}
    for job in of(objects, "Job"):
        for container in job["spec"]["template"]["spec"]["initContainers"]:
            if container["args"][0] == "certs":
                names[flags(container)["name"]] = flags(container)["host"].split(",")
    return names


class Certificates(unittest.TestCase):
    """What the Job makes, beside what it made before."""

    ROLES = {"coordinator", "stage", "encoder", "decoder", "gateway", "client", "etcd"}

    def made(self, secrets, kept=(), change={}):
        keys = ["ca.crt", "tls.crt", "tls.key"]
        known = {f"demo-janus-tls-{name}": keys for name in secrets}
        if kept:
            known["demo-janus-tls-ca"] = [*keys, *kept]
        objects = render_beside(known, change)
        (etcd,) = [o for o in of(objects, "StatefulSet") if role(o) == "etcd"]
        jobs = of(objects, "Job")
        self.assertEqual(len([o for o in objects if o["metadata"]["name"].endswith("-certificates")]), 4 * len(jobs))
        return jobs[0]["spec"]["template"]["spec"] if jobs else None, flags(etcd["spec"]["template"]["spec"]["containers"][0])

    def test_only_those_that_are_missing_are_made_and_by_the_authority_that_is_there(self):
        spec, etcd = self.made(self.ROLES - {"gateway"}, kept=["etcd-client"])
        self.assertEqual([c["args"][0] for c in spec["initContainers"]], ["certs"])
        self.assertEqual([c["args"][3] for c in spec["containers"]], ["demo-janus-tls-gateway"])
        mounted = [{m["mountPath"]: (m["name"], m.get("subPath")) for m in c["volumeMounts"]} for c in containers({"spec": spec})]
        self.assertEqual(mounted[0]["/certificates/ca.pem"], ("authority", "ca.crt"))
        self.assertEqual(mounted[0]["/certificates/ca.key"], ("authority", "tls.key"))
        # Whoever writes to the API sees no key of an authority.
        self.assertEqual(mounted[1]["/authority/ca.crt"], ("authority", "ca.crt"))
        self.assertEqual(len([m for m in mounted[1].values() if m[0] == "authority"]), 1)
        self.assertIn("--from-file=ca.crt=/authority/ca.crt", spec["containers"][0]["args"])
        self.assertEqual([v["secret"]["secretName"] for v in spec["volumes"] if v["name"] == "authority"], ["demo-janus-tls-ca"])
        self.assertIn("client-cert-allowed-hostname", etcd)

    def test_there_is_no_job_where_nothing_is_missing(self):
        spec, etcd = self.made(self.ROLES, kept=["etcd-client"])
        self.assertIsNone(spec)
        self.assertIn("client-cert-allowed-hostname", etcd)

    def test_certificates_of_yours_stay_and_open_etcd(self):
        spec, etcd = self.made(self.ROLES)
        self.assertIsNone(spec)
        self.assertNotIn("client-cert-allowed-hostname", etcd)
        with self.assertRaisesRegex(helm.HelmError, "of gateway are missing.*delete the Secrets"):
            self.made(self.ROLES - {"gateway"})
        spec, etcd = self.made(self.ROLES - {"gateway"}, kept=["other"])
        self.assertEqual([c["args"][3] for c in spec["containers"]], ["demo-janus-tls-gateway"])
        self.assertNotIn("client-cert-allowed-hostname", etcd)

    def test_the_program_goes_on_with_an_authority_that_it_is_shown(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("coordinator", "stage"):
                command = [os.environ["JANUS"], "certs", f"--out={folder}", "--cluster=c", f"--role={name}", f"--name={name}"]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                # As a Secret is mounted: nobody may write.
                os.chmod(f"{folder}/ca.pem", 0o440)
                os.chmod(f"{folder}/ca.key", 0o440)
            self.assertEqual(len(list(Path(folder).iterdir())), 6)


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

    def callers(self, change):
        """Who may call the gateway and the coordinators, beside the chart's own pods; None is everybody."""
        found = {}
        for o in of(render(change), "NetworkPolicy"):
            name = o["metadata"]["name"].removeprefix("demo-janus-")
            if name in ("gateway", "coordinator"):
                found[name] = o["spec"]["ingress"][-1].get("from")
        return found["gateway"], found["coordinator"]

    def test_whoever_leads_callers_here_is_let_in(self):
        here, anywhere = [{"podSelector": {}}], [{"namespaceSelector": {}}]
        self.assertEqual(self.callers({}), (here, here))
        ingress = {"enabled": True, "host": "a.example.org"}
        self.assertEqual(self.callers({"ingress": ingress}), (anywhere, here))
        self.assertEqual(self.callers({"ingress": {**ingress, "grpc": {"host": "b.example.org"}}}), (anywhere, anywhere))
        self.assertEqual(self.callers(ROUTED), (anywhere, anywhere))
        self.assertEqual(self.callers(merged(ROUTED, {"gatewayApi": {"grpcHostnames": []}})), (anywhere, here))
        self.assertEqual(self.callers({"gateway": {"service": {"type": "LoadBalancer"}}}), (None, here))
        named = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
        self.assertEqual(self.callers(merged(ROUTED, {"networkPolicy": {"clients": named}})), (named, named))

    def test_a_hub_and_an_object_store_are_reached_by_their_ports(self):
        def out(objects, name):
            (policy,) = [o for o in of(objects, "NetworkPolicy") if o["metadata"]["name"] == f"demo-janus-{name}"]
            return [int(p["port"]) for rule in policy["spec"]["egress"] if "to" not in rule for p in rule["ports"]]

        for url, port in (("", 443), ("https://hub.example.org", 443), ("http://hub/x:1", 80), ("http://hub:8080/a", 8080)):
            model = {"preset": "janus-pro-1b", "source": "pull", "digest": "1" * 64}
            model["pull"] = {"repository": "a/b", "endpoint": url}
            self.assertEqual(out(render({"model": model}), "stage"), [port], url)
            for name in ("AWS_ENDPOINT_URL", "aws_endpoint", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL"):
                coordinator = {"jobs": {"url": "s3://a/b"}, "extraEnv": [{"name": name, "value": url}]}
                self.assertEqual(out(render({"coordinator": coordinator}), "coordinator"), [port], f"{name}={url}")

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
            ({"encoder": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, ["encoder", "minReplicas", "maxReplicas"]),
            ({"gateway": {"autoscaling": {"enabled": True, "maxReplicas": 1}}}, ["gateway", "minReplicas", "maxReplicas"]),
            ({"poolDefaults": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, ["pools (main)", "minReplicas"]),
            ({"decoder": {"autoscaling": {"enabled": True}}, "metrics": {"port": 0}}, ["decoder", "metrics.port"]),
            ({"metrics": {"port": 7070}}, ["metrics.port", "7070"]),
            ({"metrics": {"port": 8080}}, ["metrics.port", "8080"]),
            ({"coordinator": {"stages": 3}}, ["coordinator.stages is 3", "no more than 2"]),
            ({"coordinator": {"stages": 2, "pipelines": 2}}, ["coordinator.stages is 2", "takes 4"]),
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

    def test_what_is_scaled_by_is_what_is_scraped_and_what_the_adapter_is_told(self):
        rules = re.search(r"\n    rules:\n(?:    .*\n|\n)+", (ROOT / "docs/install.md").read_text())[0]
        rules = yaml.safe_load(textwrap.dedent(rules))["rules"]["custom"]
        told = {re.match(r"[a-z_]+", rule["seriesQuery"])[0]: set(rule["resources"]["overrides"]) for rule in rules}
        for change in (values("large"), {"pools": [{"name": "a", "replicas": 2, "autoscaling": {"enabled": True}}]}):
            objects = render(change)
            services = {o["metadata"]["name"]: o for o in of(objects, "Service")}
            for o in of(objects, "HorizontalPodAutoscaler"):
                for metric in o["spec"]["metrics"]:
                    if metric["type"] == "Pods":
                        self.assertIn("pod", told[metric["pods"]["metric"]["name"]])
                    if metric["type"] == "Object":
                        self.assertIn("service", told[metric["object"]["metric"]["name"]])
                        described = services[metric["object"]["describedObject"]["name"]]
                        # Series carry the name of the Service by which they are scraped.
                        for monitor in of(objects, "ServiceMonitor"):
                            chosen = monitor["spec"]["selector"]["matchLabels"].items()
                            scraped = [s for s in services.values() if chosen <= s["metadata"]["labels"].items()]
                            self.assertEqual(scraped, [described])
        self.assertEqual(len(told), 4)

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
        policies = {o["metadata"]["name"]: o["spec"] for o in of(objects, "BackendTLSPolicy")}
        self.assertEqual(set(policies), {"demo-janus-gateway", "demo-janus-coordinator"})
        for name, policy in policies.items():
            self.assertEqual([target["name"] for target in policy["targetRefs"]], [name])
            bearer = name.removeprefix("demo-janus-")
            self.assertIn(policy["validation"]["hostname"], certificate_names(objects)[bearer])
            self.assertEqual([ref["name"] for ref in policy["validation"]["caCertificateRefs"]], [f"demo-janus-tls-{bearer}"])
        for change in ({"gatewayApi": {"backendTLSPolicy": False}}, {"tls": {"mode": "none"}}):
            self.assertEqual(of(render(merged(values("large"), change)), "BackendTLSPolicy"), [])
        self.assertEqual(len(of(objects, "Ingress")), 2)
        for o in of(objects, "Ingress"):
            self.assertIn(o["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"], services)

    def test_memory_is_what_the_planner_asks_for(self):
        for preset, source in (("shapes", {}), ("janus-pro-1b", {"source": "pvc"}), ("janus-pro-7b", {"source": "pvc"})):
            for weights in ("bf16", "q8", "q4", "f32"):
                for stages in (1, 2, 4):
                    model = {"preset": preset, "weights": weights, "kv": "bf16", "digest": "1" * 64, "pvc": {"claimName": "m"}, **source}
                    for spare in (True, False):
                        here = (preset, weights, stages, spare)
                        drain = {"spareMemory": spare}
                        container = stage({"model": model, "drain": drain, "pools": [{"name": "a", "replicas": stages}]})
                        asked = mebibytes(container["resources"]["requests"]["memory"])
                        # One that goes can hand over: the others hold all layers.
                        left = max(stages - 1, 1) if spare else stages
                        needed = planned(preset, weights, left, 16384)
                        self.assertGreater(asked, needed, here)
                        self.assertLess(asked, 1.6 * needed + 600, here)
                        self.assertEqual(flags(container)["memory"], container["resources"]["requests"]["memory"] + "B")
                        planned(preset, weights, left, 16384, memory=flags(container)["memory"])

    def test_memory_goes_by_how_few_may_hold_a_pipeline(self):
        model = on_claim("janus-pro-1b")

        def memory(replicas, **more):
            pool = {"name": "a", "replicas": replicas, **more.pop("pool", {})}
            return stage({"model": model, "pools": [pool], **more})["resources"]

        scaled = {"autoscaling": {"enabled": True, "minReplicas": 3}}
        self.assertEqual(memory(8, pool=scaled), memory(3))
        self.assertEqual(memory(1), memory(2))
        self.assertEqual(memory(6, coordinator={"pipelines": 2}), memory(3))
        self.assertEqual(memory(6, coordinator={"stages": 2}), memory(3))
        self.assertEqual(memory(2, coordinator={"stages": 2}), memory(2))
        self.assertLess(mebibytes(memory(4)["limits"]["memory"]), mebibytes(memory(3)["limits"]["memory"]))

    def test_a_memory_that_passes_is_one_that_the_worker_takes(self):
        for quantity in ("16G", "16Gi", "0.5Gi", "1.5G", "512Mi", "512M", "65536Ki", "2000000000"):
            container = stage({"pools": [{"name": "a", "replicas": 2, "memory": quantity}]})
            self.assertEqual(container["resources"]["limits"]["memory"], quantity)
            command = [os.environ["JANUS"], "config", "check", "--", "worker", "--name=s", "--role=stage"]
            subprocess.run([*command, f"--memory={flags(container)['memory']}"], check=True, capture_output=True, timeout=60)
        for quantity in ("16GiB", "16T", "16Ti", "16k", "500m", "0", "0Gi", "0.0Gi", "G"):
            for change in ({"pools": [{"name": "a", "replicas": 2, "memory": quantity}]}, {"poolDefaults": {"memory": quantity}}):
                said = fails(change)
                self.assertTrue(said and "memory" in said, f"{change}: {said}")

    def test_the_test_pod_expects_the_picture_of_the_built_in_model(self):
        (pod,) = of(render({}), "Pod")
        expected = flags(pod["spec"]["containers"][0])["expect"]
        with tempfile.TemporaryDirectory() as folder:
            command = [os.environ["JANUS"], "generate", pod["spec"]["containers"][0]["args"][1], "--json", "-o", f"{folder}/x.png"]
            painted = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        self.assertEqual(painted["images"][0]["sha256"], expected)


def stage(values):
    """The container of the one pool's pods."""
    (pool,) = [o for o in of(render(values), "StatefulSet") if role(o) == "stage"]
    return pool["spec"]["template"]["spec"]["containers"][0]


def planned(preset, weights, stages, positions, memory="400GiB"):
    """Mebibytes of the largest stage, as `janus plan` counts them; fails if there is no plan."""
    nodes = "".join(f"  - {{id: n{i}, memory: {memory}, read_gb_s: 40, gflops: 900}}\n" for i in range(stages))
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
