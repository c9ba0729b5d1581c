"""The atheris target of the fast door: `python tests/doors/fuzz_door.py CORPUS -max_total_time=600`.

The first two bytes say where the rest is cut; what is made of it is judged as in `test_fuzz`.
"""

import sys

import atheris

with atheris.instrument_imports(include=["proxy.doors"]):
    from tests.doors.judge import judge


def one_input(data):
    """Judge one input."""
    if len(data) > 2:
        judge(data[2:], [data[0], data[0] + data[1]])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
