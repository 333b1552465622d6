"""Many runs: prompts x settings x seeds, on as many cards and machines as there are.

`grid` makes the list and `slug` its names; `ledger` keeps it in files, with a `status` for each run; `shift` is what a
worker does with it, with `retries`; `worker` carries runs out in a process; `processes` and `on_ray` start workers.
"""
