"""What keeps a run sound: bad steps that never happened, stops, hangs, memory.

Read `step_verdict` (whether a step counts), `health` (skips, signals), `watchdog` (hangs),
`preflight` (the longest batch first) and `profiling`.
"""
