"""Real servers of shards on loopback, S3 by moto and HTTPS by nginx; and trainings on several machines that read there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

from helpers.worlds import free_port

BUCKET = "scalegan-test"
TESTS = Path(__file__).parents[1]
TRAINING = """
import sys
from helpers.runs import training
from scalegan import cli, settings
cli.dispatch = lambda argv: not training(settings.parse(argv).config)
sys.exit(cli.main(sys.argv[1:]))
"""
"""`scalegan train` without the evaluation after the end, which reads images of its own choice."""
WATCHED = """
import json, os, sys
from pathlib import Path
from helpers.numbered import watched
from scalegan import cli, settings

def dispatch(argv):
    config = settings.parse(argv).config
    Path(f"{config.run}.seen.{os.environ.get('RANK', '0')}").write_text(json.dumps(watched(config)))
    return 0

cli.dispatch = dispatch
sys.exit(cli.main(sys.argv[1:]))
"""
"""The same of shards by `helpers.numbered`; RUN.seen.RANK gets the numbers of the images of each step."""


def listening(port: int, process: subprocess.Popen[str]) -> None:
    import socket

    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, "the server does not come up"
        time.sleep(0.05)


@contextlib.contextmanager
def s3(shards: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL prefix of a bucket with the files of a folder, and the environment in which it is found."""
    import s3fs

    port = free_port()
    command = ["moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        listening(port, server)
        store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint, skip_instance_cache=True)
        store.mkdir(BUCKET)
        for file in shards.iterdir():
            store.put_file(str(file), f"{BUCKET}/shards/{file.name}")
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        yield f"s3://{BUCKET}/shards", keys | {"AWS_ENDPOINT_URL": endpoint}
    finally:
        server.terminate()
        server.wait(30)


class Nginx:
    """A folder over HTTPS. `rules` are nginx's own, for single files, and may be changed while it serves."""

    def __init__(self, shards: Path, folder: Path) -> None:
        self.shards, self.folder, self.port = shards, folder, free_port()
        self.log = folder / "access.log"
        self.certificate = folder / "certificate.pem"
        folder.mkdir()
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        command += ["-keyout", str(folder / "key.pem"), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SSL_CERT_FILE": str(self.certificate)}

    def configure(self, rules: str = "") -> None:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        scratch = "".join(f"{kind}_temp_path {self.folder}/{kind};\n" for kind in kinds)
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(f"""
{user} worker_processes 1; daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log;
events {{}}
http {{
{scratch} log_format brief '$status $body_bytes_sent $uri'; access_log {self.log} brief;
server {{ listen 127.0.0.1:{self.port} ssl; root {self.shards};
ssl_certificate {self.certificate}; ssl_certificate_key {self.folder}/key.pem;
{rules} }}
}}""")

    @contextlib.contextmanager
    def serving(self, rules: str = "") -> Iterator[Nginx]:
        self.configure(rules)
        command = ["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-e", str(self.folder / "error.log")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            listening(self.port, self.process)
            yield self
        finally:
            self.process.terminate()
            self.process.wait(30)

    def reload(self, rules: str = "") -> None:
        self.configure(rules)
        self.process.send_signal(signal.SIGHUP)

    def answers(self) -> list[tuple[int, int, str]]:
        """Status, bytes sent and file of each request so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(status), int(sent), name.lstrip("/")) for status, sent, name in (line.split(maxsplit=2) for line in lines)]

    def asked(self) -> list[tuple[int, str]]:
        """Status and file of each request so far."""
        return [(status, name) for status, _, name in self.answers()]


@contextlib.contextmanager
def halving(shards: Path, times: int | None = None) -> Iterator[int]:
    """The port of a server of a folder over HTTP that promises a whole file, and breaks the connection after half of it,
    the first `times` times."""
    left = count() if times is None else iter(range(times))

    class Half(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (shards / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if next(left, None) is None else content[: len(content) // 2])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def nginx_is_here() -> bool:
    return bool(shutil.which("nginx") and shutil.which("openssl"))


class Machines:
    """A training with one process on each of several machines, each with a home, and so a cache of shards, of its own."""

    def __init__(
        self, folder: Path, count: int, arguments: list[str], environment: dict[str, str], program: str = TRAINING
    ) -> None:
        port = free_port()
        self.homes = [folder / f"home{rank}" for rank in range(count)]
        self.processes = []
        for rank, home in enumerate(self.homes):
            home.mkdir(parents=True)
            world = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
            own = {name: str(value) for name, value in world.items()} if count > 1 else {}
            own |= {"MASTER_ADDR": "127.0.0.1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
            own |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, *arguments],
                    env=os.environ | environment | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def end(self, seconds: float = 200) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each."""
        try:
            said = [process.communicate(timeout=seconds) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [(process.returncode, *texts) for process, texts in zip(self.processes, said, strict=True)]

    def fetched(self, rank: int) -> dict[str, int]:
        """Name and size of the shards in the cache of one of them."""
        return {path.name: path.stat().st_size for path in self.homes[rank].rglob("shard-*.tar")}
