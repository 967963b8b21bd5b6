"""The CUDA kernels on the host under AddressSanitizer, UBSan and ThreadSanitizer."""

import os
import re
import subprocess

import pytest
from host_build import build

ASAN = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
TSAN = ("-O1", "-g", "-fsanitize=thread")


def run(flags, *arguments):
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    return subprocess.run(
        [build("sanitize.cpp", *flags), *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_no_access_outside_a_buffer_and_no_dependence_on_the_order_of_blocks():
    done = run(ASAN)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_data_race():
    done = run(TSAN, -1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(rf"{BARRIERS} barriers\n", done.stdout)


BARRIERS = 22


@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_a_missing_barrier_is_a_data_race(barrier):
    done = run(TSAN, barrier)
    assert done.returncode == 66 and "data race" in done.stderr
