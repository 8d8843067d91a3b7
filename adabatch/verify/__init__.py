"""adabatch-verify: the promises of exactness, tried on the user's own run.

command.py    the command line            checks.py     which runs are made, what is compared with what
promises.py   what is promised            processes.py  starts the command    forks.py  runs that are forked
recorded.py   what the witnesses wrote    comparing.py  where two runs part first, and by what
data.py       checks over all runs        rows.py       rows and summaries of two runs
expected.py   what a run should do        table.py      for people            check.py  a line of the verdict
"""
