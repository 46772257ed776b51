"""How near this machine's limit extraction runs: its own ceilings, the work a token takes, timed runs, rows of figures.

shapes        models by shape with random weights; synthetic documents
flops         the products of a forward pass, counted
ceilings      products, copies and disk writes of this machine, measured
extraction    timed runs and what limits them
measure       time, memory, spread, the facts of a run
report        rows as JSON lines, and a table of them
"""
