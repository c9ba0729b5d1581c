from bench.ledger import ROWS, Sizes, as_table, run

TINY = Sizes(holds=100, warm=10, loaded=200, recovered=240, idle_seconds=0.05)


class Told:
    def __init__(self):
        self.steps = []

    def step(self, text):
        self.steps.append(text)


def test_every_row_is_measured_and_told_before_it_begins():
    told = Told()
    found = run(told, TINY)
    assert len(told.steps) == len(found["rows"]) == ROWS
    assert all(value >= 0 for row in found["rows"] for value in row["figures"].values())
    assert [row["case"].split(",")[0] for row in found["rows"]] == [
        *["hold and settle"] * 3,
        "loading 200 records into DuckDB",
        *["recovery of 240 records"] * 2,
    ]
    assert as_table(found).count("| hold and settle, ") == 3
