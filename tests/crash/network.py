"""The network between the server and the broker: a proxy that carries bytes until it is cut."""

import asyncio
import random
import socket
import threading


class Network(threading.Thread):
    """Clients that come to `front` are carried to `behind`. All connections live on one loop."""

    def __init__(self, run, behind):
        super().__init__(name="network", daemon=True)
        self.run_, self.behind = run, behind
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.front = self.socket.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self.writers = set()
        self.is_cut = self.tears = False

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.flows = asyncio.Event()
        self.flows.set()
        self.loop.run_until_complete(asyncio.start_server(self.carry_both, sock=self.socket))
        self.loop.run_forever()

    async def carry_both(self, reader, writer):
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            to_broker = await asyncio.open_connection("127.0.0.1", self.behind)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, to_broker[1])
        self.writers.update(ends)
        await asyncio.gather(self.carry(reader, to_broker[1]), self.carry(to_broker[0], writer))
        self.writers.difference_update(ends)

    async def carry(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                await self.flows.wait()
                if self.tears:
                    # The first bytes of a message arrive, and nothing more.
                    writer.write(data[: random.randrange(len(data))])
                    await writer.drain()
                    self.abort()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()

    def abort(self):
        for writer in self.writers:
            writer.transport.abort()

    async def cut(self, kind, seconds):
        match kind:
            case "torn":
                self.tears = True
                await asyncio.sleep(seconds / 2)
                self.tears, self.is_cut = False, True
                self.abort()
                await asyncio.sleep(seconds / 2)
                self.is_cut = False
            case "silent":
                # Nothing is refused, nothing arrives; then all of it does.
                self.flows.clear()
                await asyncio.sleep(seconds)
                self.flows.set()
            case "lost":
                self.flows.clear()
                self.is_cut = True
                await asyncio.sleep(seconds)
                self.abort()
                self.flows.set()
                self.is_cut = False


class Cutter(threading.Thread):
    """Cuts the network, spread over the run."""

    def __init__(self, run, network, cuts, pause_s):
        super().__init__(name="cutter", daemon=True)
        self.run_, self.network, self.left, self.pause_s = run, network, cuts, pause_s
        self.random = random.Random(f"{run.seed}/network")

    def run(self):
        while self.left:
            self.run_.ends.wait(self.random.uniform(0.3, 1.7) * self.pause_s)
            if self.run_.ends.is_set():
                return
            kind = self.random.choice(["torn", "silent", "lost"])
            cut = self.network.cut(kind, self.random.uniform(0.2, 5))
            asyncio.run_coroutine_threadsafe(cut, self.network.loop).result()
            self.run_.report.add("cuts of the network")
            self.left -= 1
