"""`python -m proxy`, and the command `farebox`."""

import gc


def main() -> None:
    """Import the command and run it; see `proxy.cli`."""
    # what imports make stays: to look through it again and again was a tenth of the time to the first answer
    gc.disable()
    from proxy import cli  # noqa: PLC0415 - that is what takes the time

    gc.freeze()
    gc.enable()
    try:
        cli.main()
    finally:
        gc.unfreeze()  # else libraries find their objects left over at the end, and say so


if __name__ == "__main__":
    main()
