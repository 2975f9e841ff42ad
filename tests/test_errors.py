"""How a program that a bundle's config runs ends: what the user can mend in one line, a defect with its traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("InputError('It is bad.', 'Mend it.')", "error: It is bad. Mend it.\n"),
        ("RuntimeError('wrapped') from InputError('It is bad.', 'Mend it.')", "error: It is bad. Mend it.\n"),
        ("KeyboardInterrupt", "interrupted\n"),
    ],
)
def test_what_is_no_defect_ends_in_one_line(error, shown):
    done = run(error)
    assert done.stderr == shown and done.returncode != 0


def test_a_defect_keeps_its_traceback():
    done = run("RuntimeError('defect')")
    assert "Traceback" in done.stderr and "defect" in done.stderr and done.returncode == 1


def run(error: str) -> subprocess.CompletedProcess:
    code = "from organdetr_monai.errors import *; show_input_errors_briefly(); raise "
    return subprocess.run([sys.executable, "-c", code + error], capture_output=True, text=True, check=False)
