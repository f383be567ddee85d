"""Number-by-number comparison with the published networks, front ends and formulas.

A folder of vectors says what each gives for inputs anyone can make again; see `tests.parity.runner`.
Run:  python -m tests.parity ../shared/parity/task1 [--only NAME]
"""
