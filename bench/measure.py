"""One run of one load against one server: the load's figures, and what they cost the server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import report
from bench.rivals import RIVALS, start_rival
from bench.servers import COMMANDS, Server, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.options import LoadOptions
    from bench.scenarios import Reference

__all__ = ["run_once", "run_scenario_once"]

_GRACE_S = 60.0  # beyond the seconds of the load: log in, drain
_MIN_CPU_S = 0.1  # the kernel counts in steps of 0.01 s: below, the figure would be noise


def run_once(server: str, load: LoadOptions) -> report.Figures:
    """Start a server, put one load on it, and return the load's figures with the server's costs.

    `cpu_us` is processor time for each message delivered, after all connections were made, left out where
    there was too little of it to measure and where idle sessions had their part; `kib_per_session` is the
    growth of memory for each connection of a load with idle ones. Figures of a run that could not be made
    have only `error`.
    """
    if server in RIVALS:
        try:
            load = replace(load, proto=RIVALS[server].proto)
        except ValueError as error:  # what only the line protocol can do
            return {"error": f"not a load for {server}: {error}"}
    try:
        with _start(server) as process:
            figures = _measure(process, load)
    except ServerError as error:
        return {"error": str(error)}
    return figures if "error" in figures else figures | {"server_exit_status": process.exit_status}


def run_scenario_once(
    server: str,
    load: LoadOptions,
    reference: Reference | None,
    measure: Callable[[str, LoadOptions], report.Figures] = run_once,
) -> report.Figures:
    """Put a scenario's load on a server, after the one it is compared with, if any, for as many seconds.

    `of_reference` is the figure compared, as a part of the reference's; left out where either lacks it, and
    where a load that depends on the reference's result or that result itself was bounded by the generator.
    """
    if reference is None:
        return measure(server, load)
    before = measure(server, replace(reference.load, seconds=load.seconds))
    if wrong := report.faults(before):
        return {"error": "the load to compare with: " + "; ".join(wrong)}
    if reference.offered:
        load = replace(load, rate_per_s=reference.offered * before["delivered_per_s"])
    figures = measure(server, load)
    if reference.offered and "error" not in figures:
        figures["generator_limited"] = figures["generator_limited"] or before["generator_limited"]
        if figures["generator_limited"]:
            return figures
    if ratio := report.ratios(figures, before).get(reference.figure):
        figures["of_reference"] = ratio
    return figures


def _start(server: str) -> Server:
    return start_rival(RIVALS[server]) if server in RIVALS else Server(COMMANDS[server])


def _measure(server: Server, load: LoadOptions) -> report.Figures:
    host, port = server.address
    pss_before_kib = server.settled_pss_kib()
    argv = [sys.executable, "-m", "bench.load", *replace(load, host=host, port=port).to_argv()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as generator:
        assert generator.stdout is not None
        generator.stdout.readline()  # "settled": from here on the server is charged
        cpu_before_s, begun_s, pss_kib = server.cpu_s(), time.monotonic(), server.pss_kib()
        try:
            out, err = generator.communicate(timeout=load.seconds + load.drain_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            generator.kill()
            return {"error": "the load generator did not end"}
    if generator.returncode:
        return {"error": err.strip() or f"the load generator ended with {generator.returncode}"}
    spent_s, took_s = server.cpu_s() - cpu_before_s, time.monotonic() - begun_s
    figures: report.Figures = json.loads(out.splitlines()[-1])
    if spent_s >= _MIN_CPU_S and figures["delivered"] and not load.idle:
        figures["cpu_us"] = round(spent_s * 1e6 / figures["delivered"], 3)
    figures["server_cpu_share"] = round(spent_s / took_s, 4)
    if load.idle:
        figures["kib_per_session"] = round((pss_kib - pss_before_kib) / load.connections, 2)
    return figures
