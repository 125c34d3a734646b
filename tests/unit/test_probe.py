"""The downtime probe's arithmetic: what was due, how long it waited, in which second it counts."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest

from tests.support.modules import load_module

probe = load_module("pg_probe")


def rounded(waits: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(round(due, 6), round(wait, 6)) for due, wait in waits]


def test_an_operation_in_time_is_one_wait() -> None:
    waits, following = probe.answered(100.0, 0.1, 3, 100.305)
    assert rounded(waits) == [(100.3, 0.005)]
    assert following == 4


def test_all_that_came_due_behind_one_that_hung_has_waited_too() -> None:
    waits, following = probe.answered(100.0, 0.1, 3, 100.75)
    assert rounded(waits) == [(100.3, 0.45), (100.4, 0.35), (100.5, 0.25), (100.6, 0.15), (100.7, 0.05)]
    assert following == 8


def test_no_operation_is_counted_twice_or_left_out() -> None:
    oldest, dues = 0, []
    for ended in (0.001, 0.1001, 0.2, 0.35, 2.0, 2.1):
        waits, oldest = probe.answered(0.0, 0.1, oldest, ended)
        dues += [round(due * 10) for due, _ in waits]
    assert dues == list(range(22))


def test_a_clock_that_is_a_hair_early_makes_no_negative_wait() -> None:
    waits, following = probe.answered(100.0, 0.1, 3, 100.2999999)
    assert [wait for _, wait in waits] == [0.0]
    assert following == 4


def test_samples_go_by_the_second_in_which_they_were_due() -> None:
    seconds = probe.Seconds()
    seconds.add([(10.5, 2.0), (10.9, 1.6), (11.0, 1.5), (12.4, 0.1)])
    seconds.failed(11.7)
    assert seconds.take(10.99) == []
    assert seconds.take(12.2) == [
        {"second": 10, "waits_ms": [2000.0, 1600.0], "errors": 0},
        {"second": 11, "waits_ms": [1500.0], "errors": 1},
    ]
    assert seconds.take(12.2) == []
    assert seconds.take(math.inf) == [{"second": 12, "waits_ms": [100.0], "errors": 0}]


def test_tables_that_are_not_looked_at_are_named() -> None:
    found = [("public.a", None), ("public.p", "is partitioned"), ("public.b", None), ("public.c", None)]
    tables, left_out = probe.choose(found, 2)
    assert tables == ["public.a", "public.b"]
    assert left_out == ["public.p is partitioned", "public.c is one too many for probe_max_tables (2)"]


def test_a_process_is_known_until_it_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = probe.identity(child.pid)
    assert known is not None
    assert known == probe.identity(child.pid)
    assert known != probe.identity(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not waited for: a zombie
    assert probe.identity(child.pid) is None
    child.communicate()
    assert probe.identity(child.pid) is None
    assert probe.identity(None) is None


@pytest.mark.parametrize("given", ["", None])
def test_settings_that_are_not_given_are_left_to_libpq(given: str | None) -> None:
    logins = ("login_host", "login_port", "login_user", "login_password", "login_db")
    names = (*logins, "passfile", "ssl_mode", "ca_cert", "ssl_cert", "ssl_key")
    params = dict.fromkeys(names, given) | {"run": 7, "connect_params": {"passfile": given, "connect_timeout": 3}}
    assert probe.settings(params) == {"application_name": "pgrollout-probe/7", "connect_timeout": 3}
