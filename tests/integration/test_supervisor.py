"""The supervisor with real processes: small ones, that behave or misbehave as they are told."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from services.cli.logs import line_bytes_max
from services.cli.process import Ending
from services.cli.rows import Stage
from services.cli.supervisor import (
    drain_s_max,
    hurry_s,
    kill_s_max,
    stop_reserve_s_default,
    stop_reserves_s,
    stop_s_max,
)
from tests.free_ports import free_port
from tests.integration.supervised import serving, supervised, table
from tests.plain_http import plain_client
from tests.waiting import wait_until


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def script(name: str, text: str, stage: str = "NODES", **more: Any) -> dict[str, Any]:
    """A row that runs a line of Python."""
    return {"name": name, "stage": stage, "command": ["-c", text], **more}


async def say(row: dict[str, Any], text: str) -> None:
    """Have an example service print a line."""
    async with plain_client() as client:
        await client.get(f"http://127.0.0.1:{row['port']}/", params=text)


async def test_stages_start_in_order_and_stop_backwards_and_up_json_lives_in_between(
    data_dir: Path,
) -> None:
    gateway, node = serving("gateway", "GATEWAY"), serving("node-1", "NODES")
    migrate = script("migrate", "print('migrated')", "MIGRATION", one_shot=True)
    async with supervised(table([gateway, migrate, node], data_dir), data_dir) as up:
        document = await up.until_up()
        path = data_dir / "up.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert document["ready"] is True
        assert document["gateway"] == f"http://127.0.0.1:{gateway['port']}"
        assert document["nodes"]["node-1"]["url"] == f"http://127.0.0.1:{node['port']}"
        assert document["nodes"]["node-1"]["pid"] == document["pids"]["node-1"]
        assert set(document["pids"]) == {"gateway", "node-1"}
        assert up.shown.index("migrated") < up.shown.index("starting node-1")
        assert up.shown.index("node-1       | [up] ready") < up.shown.index("starting gateway")

        up.signal(signal.SIGINT)
        assert await up.ended() == 0
        assert not path.exists()
        assert up.left() == []
        assert up.shown.index("stopping gateway") < up.shown.index("stopping node-1")
        assert "gateway      | leaving, without an end of line\n" in up.shown
    log = (data_dir / "logs" / "gateway.log").read_text()
    assert log.startswith("serving\n")
    assert log.endswith("leaving, without an end of line\n")
    assert stat.S_IMODE((data_dir / "logs" / "gateway.log").stat().st_mode) == 0o600


async def test_kill_9_of_the_supervisor_leaves_no_child_and_the_next_one_starts_at_once(
    data_dir: Path,
) -> None:
    rows = [serving("node-1", "NODES"), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        assert len(up.left()) == 3
        up.signal(signal.SIGKILL)
        # The very moment of the kill: the children are still there, and so is up.json.
        async with supervised(table(rows, data_dir), data_dir) as again:
            await again.until_up()
            assert up.left() == []
            again.signal(signal.SIGTERM)
            assert await again.ended() == 0
            await again.until_none_left()


async def test_what_an_earlier_supervisor_left_running_is_waited_for(tmp_path: Path) -> None:
    data_dir = tmp_path
    holder = os.open(data_dir / "children.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)
    (data_dir / "up.json").write_text("{}")
    async with supervised(table([serving("gateway", "GATEWAY")], data_dir), data_dir) as up:
        await up.until_shown("waiting for the processes of an earlier run to end")
        assert not (data_dir / "up.json").exists(), "it told of a supervisor that is gone"
        assert "starting" not in up.shown
        os.close(holder)
        await up.until_up()


async def test_a_service_that_dies_is_named_and_started_again_while_others_go_on(
    data_dir: Path,
) -> None:
    rows = [serving("node-1", "NODES"), serving("node-2", "NODES")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        before = (await up.until_up())["pids"]
        victim = before["node-1"]
        os.kill(victim, signal.SIGKILL)
        await up.until_shown("[up] node-1 was killed by SIGKILL; starting it again in 0.0 s")
        after = await up.new_pid("node-1", victim)
        await up.until_shown(f"ready (pid {after})")
        assert up.document()["pids"]["node-2"] == before["node-2"]
        assert up.document()["nodes"]["node-1"]["pid"] == after


async def test_a_dead_process_is_told_of_nowhere_though_its_restart_takes_a_while(
    data_dir: Path,
) -> None:
    row = serving("node-1", "NODES", first_s=600.0)
    async with supervised(table([row], data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-1"]
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: not up.document()["pids"], "its pid is gone")
        assert up.document()["nodes"]["node-1"]["pid"] is None


async def test_a_service_that_keeps_dying_is_started_at_a_bounded_rate(data_dir: Path) -> None:
    node = serving("node-1", "NODES")
    async with supervised(table([node], data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-1"]
        # From now on nobody can listen there, so every start fails.
        os.kill(pid, signal.SIGKILL)
        blocker = await asyncio.start_server(lambda _, writer: writer.close(), sock=_bound(node))
        async with blocker:
            await up.until_shown("is failing (6 deaths in a row); starting it again")
            assert up.document()["down"]["node-1"].startswith("failing: node-1 ended with exit")
        waits = re.findall(r"starting it again in (\d\.\d) s", up.shown)
        assert waits[0] == "0.0"
        assert all(0.2 <= float(wait_s) <= 0.4 for wait_s in waits[3:])
        await up.until_shown("[up] ready", times=2)
        assert up.process.returncode is None


def _bound(row: dict[str, Any]) -> socket.socket:
    """A socket on the row's port, as soon as its service has let go of it."""
    while True:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", row["port"]))
            listener.listen()
        except OSError:
            listener.close()
        else:
            return listener


async def test_what_a_dead_service_left_behind_is_ended_before_it_starts_again(
    data_dir: Path, tmp_path: Path
) -> None:
    async with supervised(table([serving("node-1", "NODES", "orphan")], data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-1"]
        orphan = psutil.Process(pid).children()[0]
        os.kill(pid, signal.SIGKILL)
        await up.new_pid("node-1", pid)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


async def test_a_service_that_cannot_start_stops_everything_with_one_line(
    data_dir: Path,
) -> None:
    broken = script("broken", "print('reading the map'); raise SystemExit('no map')", "GATEWAY",
                    port=free_port())  # fmt: skip
    rows = [serving("node-1", "NODES"), broken]
    async with supervised(table(rows, data_dir), data_dir) as up:
        assert await up.ended() == 1
        assert up.left() == []
        line = up.shown.splitlines()[-1]
        assert line.startswith(
            "ydht: broken ended with exit code 1 before it was ready, 3 times in a row: "
        )
        assert line.endswith(f"in a row: no map (see {data_dir / 'logs' / 'broken.log'})")
        assert "Traceback" not in up.shown
        assert not (data_dir / "up.json").exists()


async def test_what_a_service_says_at_every_try_is_quoted_once(data_dir: Path) -> None:
    migrate = script("migrate", "raise SystemExit('wrong password')", "MIGRATION", one_shot=True)
    async with supervised(table([migrate], data_dir), data_dir) as up:
        assert await up.ended() == 1
        assert up.shown.splitlines()[-1].count("wrong password") == 1


async def test_a_one_shot_that_fails_stops_everything_too(data_dir: Path) -> None:
    migrate = script("migrate", "raise SystemExit('no such revision')", "MIGRATION", one_shot=True)
    rows = [migrate, serving("node-1", "NODES")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        assert await up.ended() == 1
        assert "ydht: migrate ended with exit code 1" in up.shown
        assert "starting node-1" not in up.shown


async def test_a_program_that_is_not_there_is_a_line_as_well(data_dir: Path) -> None:
    missing = script("missing", "", one_shot=True)
    missing["command"] = ["/nonexistent/program.py"]
    async with supervised(table([missing], data_dir), data_dir) as up:
        assert await up.ended() == 1
        assert "ydht: missing ended with exit code 2 before it was ready" in up.shown


@pytest.mark.parametrize(
    ("mood", "reason"),
    [("unready", "answered 503: still counting"), ("mute", "no answer within 2 s")],
)
async def test_a_service_that_never_gets_ready_is_given_up_with_the_reason(
    data_dir: Path, mood: str, reason: str
) -> None:
    row = serving("gateway", "GATEWAY", mood, ready_s_max=0.5)
    async with supervised(table([row], data_dir), data_dir) as up:
        assert await up.ended() == 1
        assert "ydht: gateway was not ready within 0.5 s: " in up.shown
        assert reason in up.shown
        assert "starting it again" not in up.shown
        assert up.left() == []


async def test_a_restarted_service_that_takes_long_is_named_and_left_to_recover(
    data_dir: Path,
) -> None:
    row = serving("node-1", "NODES", "relapse", ready_s_max=0.3)
    async with supervised(table([row], data_dir), data_dir) as up:
        pid = (await up.until_up())["pids"]["node-1"]
        os.kill(pid, signal.SIGKILL)
        after = await up.new_pid("node-1", pid)
        await up.until_shown("not ready for 0.3 s more: ", times=2)
        assert up.document()["pids"]["node-1"] == after


async def test_after_a_healthy_period_the_waits_begin_anew(data_dir: Path) -> None:
    rows = [
        serving("node-1", "NODES", healthy_s=0.0),
        serving("node-2", "NODES", healthy_s=600.0),
    ]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        for name in ("node-1", "node-2"):
            for deaths in range(1, 6):
                pid = up.document()["pids"][name]
                os.kill(pid, signal.SIGKILL)
                await up.new_pid(name, pid)
                await up.until_shown(f"{name}       | [up] ready", times=deaths + 1)
        waits = {
            name: re.findall(rf"{name} was killed by SIGKILL; .* in (\d\.\d) s", up.shown)
            for name in ("node-1", "node-2")
        }
        assert set(waits["node-1"]) <= {"0.0", "0.1"}
        assert float(waits["node-2"][-1]) >= 0.2


async def test_a_service_deaf_to_sigterm_is_killed_and_the_stop_ends_within_ten_seconds(
    data_dir: Path,
) -> None:
    deaf = serving("gateway", "GATEWAY", "deaf")
    keygen, node = serving("keygen", "KEYGEN", "deaf"), serving("node-1", "NODES")
    async with supervised(table([deaf, keygen, node], data_dir), data_dir) as up:
        await up.until_up()
        begun_s = time.monotonic()
        up.signal(signal.SIGTERM)
        assert await up.ended() == 0
        # The one figure that is promised to users.
        assert time.monotonic() - begun_s < 10
        assert up.left() == []
        assert "killing gateway: not stopped in time" in up.shown
        assert "killing keygen: not stopped in time" in up.shown
        assert "killing node-1" not in up.shown
        assert "Traceback" not in up.shown


async def test_a_stop_waits_for_who_is_slow_hurries_who_dawdles_and_keeps_the_order(
    data_dir: Path,
) -> None:
    migrate = script("migrate", "print('migrated')", "MIGRATION", one_shot=True)
    rows = [
        serving("gateway", "GATEWAY", "slow"),
        serving("keygen", "KEYGEN", "dawdling"),
        serving("usermanager", "ACCOUNTS"),
        serving("replicator", "REPLICATORS"),
        serving("node-1", "NODES"),
        migrate,
        serving("postgres", "DATABASE"),
    ]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        begun_s = time.monotonic()
        up.signal(signal.SIGTERM)
        assert await up.ended() == 0
        assert time.monotonic() - begun_s < 10
        assert "killing" not in up.shown
        stopped = re.findall(r"stopping ([\w-]+)$", up.shown, re.MULTILINE)
        assert stopped == [row["name"] for row in rows if row is not migrate]


def test_the_gateway_has_longer_to_stop_than_its_longest_request_takes() -> None:
    after = set(Stage) - {Stage.GATEWAY, Stage.MIGRATION}
    reserved_s = sum(stop_reserves_s.get(stage, stop_reserve_s_default) for stage in after)
    assert stop_s_max - reserved_s - hurry_s > 5.0
    assert stop_s_max + kill_s_max + drain_s_max < 10.0


async def test_a_second_ctrl_c_hurries(data_dir: Path) -> None:
    rows = [serving("gateway", "GATEWAY", "deaf"), serving("node-1", "NODES", "deaf")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGINT)
        await up.until_shown("stopping gateway")
        assert "killing" not in up.shown
        up.signal(signal.SIGINT)
        await up.until_shown("SIGINT: killing all but PostgreSQL")
        assert await up.ended() == 0
        assert up.shown.count("[up]") >= 2
        assert up.left() == []


async def test_the_database_may_finish_when_hurried_and_a_third_ctrl_c_ends_it(
    data_dir: Path,
) -> None:
    rows = [serving("postgres", "DATABASE", "deaf")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGINT)
        await up.until_shown("stopping postgres")
        up.signal(signal.SIGINT)
        await up.until_shown("killing all but PostgreSQL")
        assert "killing postgres" not in up.shown
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
        asked = up.shown.index("killing what is left")
        assert asked < up.shown.index("killing postgres: as you asked")


async def test_a_stop_during_the_start_stops_what_has_been_started(data_dir: Path) -> None:
    rows = [serving("node-1", "NODES"), serving("gateway", "GATEWAY", "unready")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_shown("starting gateway")
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
        assert up.left() == []
        assert "Everything is ready." not in up.shown


async def test_a_stop_does_not_wait_for_a_restart_that_is_due_later(data_dir: Path) -> None:
    async with supervised(
        table([serving("gateway", "GATEWAY", first_s=600.0)], data_dir), data_dir
    ) as up:
        pid = (await up.until_up())["pids"]["gateway"]
        os.kill(pid, signal.SIGKILL)
        await up.until_shown("starting it again in")
        up.signal(signal.SIGTERM)
        assert await up.ended() == 0
        assert up.left() == []
        assert "killing gateway" not in up.shown, "there was nothing to kill"


async def test_a_second_supervisor_of_the_same_data_is_refused_by_pid(data_dir: Path) -> None:
    async with supervised(table([serving("gateway", "GATEWAY")], data_dir), data_dir) as up:
        await up.until_up()
        async with supervised(table([], data_dir), data_dir) as second:
            assert await second.ended() == 78
            assert second.shown == (
                f"ydht: {data_dir} is in use by another `ydht up` (pid {up.process.pid}): "
                "stop that one, or give this one its own --data-dir\n"
            )
        assert (data_dir / "up.json").exists(), "the first one's"
        assert up.process.returncode is None


async def test_a_taken_port_is_refused_before_anything_starts(data_dir: Path) -> None:
    row = serving("gateway", "GATEWAY")
    with socket.create_server(("127.0.0.1", row["port"] + 1000)):
        rows = [serving("node-1", "NODES"), row]
        async with supervised(table(rows, data_dir), data_dir) as up:
            assert await up.ended() == 1
            assert "starting" not in up.shown
            assert (
                f"ydht: port {row['port'] + 1000}, for links of gateway, "
                f"is taken by process {os.getpid()} (" in up.shown
            )


@pytest.mark.parametrize("place", ["a file", "below a file"])
async def test_a_data_directory_that_cannot_be_is_one_line(tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    data_dir = file if place == "a file" else file / "data"
    async with supervised(table([], data_dir), tmp_path / "unused") as up:
        assert await up.ended() == 78
        assert up.shown.startswith(f"ydht: data directory {data_dir} ")
        assert up.shown.count("\n") == 1


async def test_a_flood_of_output_starves_nobody_and_fills_no_memory(data_dir: Path) -> None:
    flood = "import sys\nwhile True: sys.stdout.write('x' * 1000000)"
    port = free_port()
    server = (
        "import http.server, threading\n"
        "class Yes(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        f"serve = http.server.HTTPServer(('127.0.0.1', {port}), Yes).serve_forever\n"
        "threading.Thread(target=serve, daemon=True).start()\n"
    )
    flooding = script("flood", server + flood, "NODES", port=port)
    quiet = serving("gateway", "GATEWAY")
    async with supervised(table([flooding, quiet], data_dir), data_dir) as up:
        await up.until_up()
        memory = psutil.Process(up.process.pid).memory_info().rss
        log = data_dir / "logs" / "flood.log.1"
        await wait_until(log.exists, "the flood has filled one log file")
        await say(quiet, "still here")
        await up.until_shown("gateway      | still here")
        grown = psutil.Process(up.process.pid).memory_info().rss - memory
        assert grown < 16 * 2**20
        assert max(map(len, log.read_bytes().split(b"\n"))) == line_bytes_max
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
    logs = list((data_dir / "logs").glob("flood.log*"))
    assert len(logs) == 2
    assert sum(path.stat().st_size for path in logs) <= 2 * 16 * 2**20


async def test_a_stalled_terminal_stalls_nothing(data_dir: Path) -> None:
    row = serving("gateway", "GATEWAY")
    ours, theirs = pty.openpty()
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, *table([row], data_dir)), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        # Nobody reads the terminal, as after Ctrl-S.
        await wait_until((data_dir / "up.json").exists, "everything is up")
        for number in range(40):
            await say(row, f"{number} " + "x" * 10_000)
        log = data_dir / "logs" / "gateway.log"
        await wait_until(lambda: "\n39 xxx" in log.read_text(), "the log has it all")
        supervisor.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await supervisor.wait() == 0
    finally:
        if supervisor.returncode is None:
            supervisor.kill()
            await supervisor.wait()
        os.close(ours)


async def test_a_terminal_that_closes_stops_everything_unless_under_nohup(
    data_dir: Path,
) -> None:
    rows = [serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGHUP)
        assert await up.ended() == 0
    nohup = [
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
        *table(rows, data_dir),
    ]
    async with supervised(nohup, data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGHUP)
        await say(rows[0], "alive")
        await up.until_shown("| alive")
        assert up.process.returncode is None


async def test_ctrl_z_and_a_resize_are_harmless(data_dir: Path) -> None:
    rows = [serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        await up.until_up()
        up.signal(signal.SIGTSTP)
        up.signal(signal.SIGWINCH)
        await up.until_shown("Ctrl-Z would stall the services")
        assert psutil.Process(up.process.pid).status() != psutil.STATUS_STOPPED


async def test_children_hold_only_the_reading_end_and_have_their_own_sessions(
    data_dir: Path,
) -> None:
    rows = [serving("node-1", "NODES"), serving("gateway", "GATEWAY")]
    async with supervised(table(rows, data_dir), data_dir) as up:
        pids = (await up.until_up())["pids"]
        assert all(os.getsid(pid) == pid for pid in pids.values())
        ends = [_pipe_ends(pid) for pid in (up.process.pid, *pids.values())]
        writers = set.intersection(*({pipe for pipe, _ in held} for held in ends))
        assert len(writers) == 1, "one pipe is shared by all"
        pipe = writers.pop()
        assert [("w" in _modes(held, pipe)) for held in ends] == [True, False, False]
        lock = data_dir / "children.lock"
        assert all(lock in _open_files(pid) for pid in pids.values()), "until the last has ended"


def _pipe_ends(pid: int) -> set[tuple[str, str]]:
    """Every pipe a process holds, with how it is open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("pipe:"):
            found.add((target, "w" if link.lstat().st_mode & 0o200 else "r"))
    return found


def _open_files(pid: int) -> list[Path]:
    return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]


def _modes(ends: set[tuple[str, str]], pipe: str) -> set[str]:
    return {mode for name, mode in ends if name == pipe}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),
    ],
)
def test_the_way_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert Ending.of(code).words == words
