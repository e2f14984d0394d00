"""csrc/rows.cpp under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("rows_driver.cpp")
FLAGS = ["-std=c++17", "-O0", "-DROWS_PORTABLE", "-ffp-contract=off", "-Wno-psabi", "-pthread",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def test_the_kernels_touch_only_what_they_own(tmp_path):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    trial = tmp_path / "trial.cpp"
    trial.write_text("int main() {}\n")
    if subprocess.run([compiler, *FLAGS, trial, "-o", tmp_path / "trial"], capture_output=True).returncode:
        pytest.skip("the C++ compiler has no sanitizers")
    subprocess.run([compiler, *FLAGS, DRIVER, "-o", tmp_path / "driver"], check=True)
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True,
                          env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"})       # threads wait to the end
    assert done.returncode == 0, done.stderr[-3000:]
