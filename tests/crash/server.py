"""The Riverrun process of the run, and the broker."""

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import time

import psycopg

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of a debug build on a busy machine.
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 180


class Failed(Exception):
    """The run cannot go on."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def die_with_parent():
    """PR_SET_PDEATHSIG: nothing is left over even if the run itself is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """One process at a time, on one port and one folder; started by the main thread only."""

    def __init__(self, run, binary, folder):
        self.run, self.binary, self.folder = run, binary, folder
        self.port = free_port()
        self.process, self.started, self.starts = None, None, 0
        self.interval_ms = 500
        self.workers = 2

    def start(self):
        self.starts += 1
        log = self.folder / f"server-{self.starts:03}.log"
        command = [
            str(self.binary),
            "serve",
            "--listen",
            f"127.0.0.1:{self.port}",
            "--data-dir",
            str(self.folder / "data"),
            "--workers",
            str(self.workers),
            "--checkpoint-interval",
            f"{self.interval_ms} ms",
        ]
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RIVERRUN_") or name == "RIVERRUN_LOG"
        }
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
                env=environment,
            )
        self.started = time.monotonic()
        self.run.report.add("starts")

    def connect(self, **options):
        options = {"autocommit": True, "connect_timeout": 5, **options}
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user=crash dbname=dev", **options)

    def wait_until_ready(self):
        """Until `select 1` is answered."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check_alive()
            try:
                with self.connect() as connection:
                    connection.execute("select 1")
                break
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise Failed(f"no answer {START_TIMEOUT_S} s after the start; see {self.log()}") from None
                time.sleep(0.02)
        took = time.monotonic() - self.started
        self.run.report.took("from start to an answer", took)
        return took

    def log(self):
        return self.folder / f"server-{self.starts:03}.log"

    def check_alive(self):
        code = self.process.poll()
        if code is not None:
            raise Failed(
                f"the server ended by itself with {code}; see {self.log()}:\n{self.log().read_text(errors='replace')[-2000:]}"
            )

    def kill(self):
        """kill -9; an end by itself before that is a failure."""
        self.check_alive()
        self.process.kill()
        self.process.wait()

    def terminate(self):
        """SIGTERM: it has to end by itself, with 0."""
        self.check_alive()
        began = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end {STOP_TIMEOUT_S} s after SIGTERM; see {self.log()}") from None
        if code != 0:
            self.run.report.difference(f"after SIGTERM the server ended with {code}; see {self.log()}")
        self.run.report.took("from SIGTERM to the end", time.monotonic() - began)

    def pause(self, seconds):
        self.check_alive()
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Broker:
    """Apache Kafka by scripts/kafka, in a folder of the run."""

    def __init__(self, run, folder):
        self.run, self.folder = run, folder
        self.port, self.network = None, None
        self.script = ROOT / "scripts" / "kafka"

    def start(self):
        at = ["--port", str(self.port)] if self.port else []
        out = subprocess.run(
            [self.script, "start", "--dir", self.folder, *at, "--proxied", f"{self.network.behind}:{self.network.front}"],
            stdout=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if out.returncode != 0:
            raise Failed("Apache Kafka did not start")
        bootstrap = out.stdout.strip().removeprefix("KAFKA_BOOTSTRAP=")
        self.port = int(bootstrap.rsplit(":", 1)[1])
        return bootstrap

    def kill(self):
        os.kill(int((self.folder / "kafka.pid").read_text()), signal.SIGKILL)

    def end(self):
        subprocess.run([self.script, "stop", "--dir", self.folder], stdin=subprocess.DEVNULL, check=False)
