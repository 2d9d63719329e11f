"""What the README has a first-time user type, typed: letter for letter, but for the ports.

Between the marks of a tour stand blocks of shell. Below a command stands what it answers, as
comments, in which `…` is for what differs from run to run; a command without is one whose answer
does not matter. All are typed into one shell, against everything that `ydht up` starts.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.test_up import ports_of_up, up_command
from tests.free_ports import free_port
from tests.integration.supervised import supervised
from tests.tidy.tree import root

readme = (root / "README.md").read_text()
tours = re.findall(r"<!-- tour -->\n(.*?)<!-- /tour -->", readme, re.DOTALL)
# What the README calls the first port, and the others from it.
port_base_told = 8080
# Ends the output of one command; none of them writes it.
end = "\x1e"


@dataclass(frozen=True, slots=True)
class Step:
    """A command, over one line or several, and the answer that is told, if one is."""

    command: str
    answer: str

    def fits(self, output: str) -> bool:
        pattern = re.escape(self.answer).replace("…", "[^\n]+?")
        return not self.answer or re.fullmatch(pattern, output) is not None


def steps_of(block: str) -> list[Step]:
    """Steps stand apart by an empty line."""
    found = []
    for part in re.split(r"\n{2,}", block.strip()):
        lines = part.splitlines()
        answer = [line[2:] for line in lines if line.startswith("# ")]
        command = lines[: len(lines) - len(answer)]
        assert command, f"an answer to no command: {part}"
        assert not any(line.startswith("#") for line in command), f"an answer amidst: {part}"
        found.append(Step("\n".join(command), "\n".join(answer)))
    return found


steps = [
    step
    for tour in tours
    for block in re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)
    for step in steps_of(block)
]


def moved(command: str, port_base: int) -> str:
    """The command, for services whose ports begin elsewhere."""

    def port(match: re.Match[str]) -> str:
        return f"127.0.0.1:{int(match[1]) - port_base_told + port_base}"

    command = re.sub(r"localhost:(\d+)", port, command)
    # In this order: the interpreter may be called python3 itself.
    command = command.replace("python3", sys.executable)
    return command.replace(".venv/bin/ydht", f"{sys.executable} -m services.cli")


async def typed(
    commands: list[str], environment: Mapping[str, str], directory: Path = root
) -> tuple[int | None, list[str], str]:
    """Type them into one shell, which ends at the first that fails."""
    script = "".join(f"{command}\nprintf '\\036'\n" for command in commands)
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-u", "-o", "pipefail", "-c", script,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=directory, env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip
    output, errors = await process.communicate()
    *outputs, rest = output.decode().replace("\r", "").split(end)
    assert rest == "" or process.returncode != 0
    return process.returncode, [each.strip("\n") for each in outputs], errors.decode()


def test_every_block_that_calls_a_service_is_of_a_tour() -> None:
    blocks = re.findall(r"^```.*?^```", readme, re.MULTILINE | re.DOTALL)
    calling = [block for block in blocks if "curl" in block]
    assert calling
    assert all(any(block in tour for tour in tours) for block in calling)
    assert all("…" not in step.command for step in steps), "what is typed is told to the letter"


async def test_the_first_minute_is_as_the_readme_tells_it(tmp_path: Path) -> None:
    base = free_port(ports_of_up)
    data_dir = tmp_path / "data"
    async with supervised(up_command(data_dir, port_base=base), data_dir) as up:
        await up.until_up()
        environment = {"DATA_DIR": str(data_dir)}
        commands = [moved(step.command, base) for step in steps]
        code, outputs, errors = await typed(commands, environment)
        assert (code, errors, len(outputs)) == (0, "", len(steps))
        for step, output in zip(steps, outputs, strict=True):
            assert step.fits(output), f"{step.command}\nanswers\n{output}\nand not\n{step.answer}"

        # Typed twice, the account is there already, and nothing of it fails.
        code, outputs, errors = await typed(commands, environment)
        assert (code, errors) == (0, "")
        assert '"code":"already_exists"' in outputs[0]

        # What is shown of services that run alone, each on its port, is so here as well.
        alone = re.findall(r"^    curl (localhost:\d+/\S+)", readme, re.MULTILINE)
        assert alone
        asked = [moved(f"curl -sS --fail {place}", base) for place in alone]
        code, outputs, errors = await typed(asked, environment)
        assert (code, errors) == (0, "")
        up.signal(signal.SIGINT)
        assert await up.ended() == 0
