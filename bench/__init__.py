"""`python -m bench`: this library and its peers side by side, in one process, turn by turn.

    shapes   ──►  problem: arrays and their float64 answer  ──►  peers build the layer, each as its users would
    machine  ──►  limits: matrix product peak, bandwidth             │
                                                                     ▼
    report, figure  ◄──  results (JSON)  ◄──  timing: turns  ◄──  verify: wrong ones are not timed

`bench/README.md` says what was found with it.
"""
