"""A container engine of our own, and the image of deploy/Dockerfile, without a registry.

Debian's dockerd runs as a child of this process, in namespaces that `tests/chart.rs` made for it, so nothing of it outlives the test
and nothing of it touches the machine's network. The image's base is the program's own libraries instead of a distroless one.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Whatever waits gives up after this, on a machine that does other things too.
LONG = 180


class Failed(Exception):
    pass


def run(*command, check=True, timeout=LONG, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def until(what, fits, seconds=LONG, pause=0.1):
    """Waits for something true and gives it back."""
    end = time.monotonic() + seconds
    while True:
        found = fits()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"never: {what}")
        time.sleep(pause)


class Engine:
    """dockerd, and the network `pods`."""

    def __init__(self, folder, programs):
        self.folder = Path(folder)
        path = f"{programs}/usr/bin:{programs}/usr/sbin:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "DOCKER_HOST": f"unix://{folder}/docker.sock", "DOCKER_BUILDKIT": "1"}
        run("ip", "link", "set", "lo", "up")
        self.log = open(self.folder / "dockerd.log", "w")
        flags = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
        self.daemon = subprocess.Popen(["dockerd", "-H", f"unix://{folder}/docker.sock", *flags], env=self.environment,
                                       stdout=self.log, stderr=self.log)
        until("the engine answers", self.answers)
        self.docker("network", "create", "--subnet", "10.77.0.0/16", "pods")

    def answers(self):
        if self.daemon.poll() is not None:
            raise Failed("dockerd ended:\n" + (self.folder / "dockerd.log").read_text()[-3000:])
        return subprocess.run(["docker", "info"], env=self.environment, capture_output=True).returncode == 0

    def docker(self, *arguments, **options):
        return run("docker", *arguments, env=self.environment, **options)

    def inspect(self, name):
        (found,) = json.loads(self.docker("inspect", name))
        return found

    def logs(self, name):
        done = subprocess.run(["docker", "logs", "--tail", "60", name], env=self.environment, capture_output=True, text=True)
        return done.stdout + done.stderr

    def stop(self):
        running = self.docker("ps", "-aq").split()
        if running:
            self.docker("rm", "-f", *running)
        self.daemon.terminate()
        self.daemon.wait(60)

    def base(self, name, programs):
        """An image of these programs with the libraries they load, and a user that is nobody."""
        root = self.folder / name
        for program in programs:
            loaded = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
            for library in re.findall(r"(/\S+)", loaded):
                if library.startswith("/") and Path(library).is_file() and Path(library) != program:
                    (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(library, root / library[1:])
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "tmp").mkdir(exist_ok=True)
        (root / "tmp").chmod(0o1777)
        (root / "etc/passwd").write_text("nonroot:x:65532:65532::/tmp:/sbin/nologin\n")
        return root

    def load(self, root, name):
        """A folder as an image."""
        packed = f"{self.folder}/{name.replace(':', '-')}.tar"
        run("tar", "-C", root, "--owner=0", "--group=0", "-cf", packed, ".")
        self.docker("import", packed, name)
        os.remove(packed)

    def image(self, program, name):
        """The last stage of deploy/Dockerfile, over a program that is built already."""
        built = self.folder / "built"
        built.mkdir(exist_ok=True)
        run("strip", "-s", "-o", built / "janus", program)
        self.load(built, "janus-built:here")
        self.load(self.base("base", [Path(program)]), "janus-base:here")
        context = self.folder / "context"
        context.mkdir(exist_ok=True)
        self.docker("build", "-q", "-f", ROOT / "deploy/Dockerfile", "--build-arg", "BASE=janus-base:here", "--build-arg",
                    "BUILT=janus-built:here", "-t", name, context)

    def etcd_image(self, programs, name):
        root = self.base("etcd", programs)
        (root / "usr/local/bin").mkdir(parents=True)
        for program in programs:
            shutil.copy(program, root / "usr/local/bin")
        self.load(root, name)
