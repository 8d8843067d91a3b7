"""adabatch-plan: a schedule as a table, a plot and warnings, before anything runs and without torch.

bounds.py    what is known in advance of a closed loop
times.py     --profile: wall time, speed-up, cost        spending.py  the same for people
job.py       a configuration's whole plan          warnings.py  what a user should know of it
power.py     how many seeds an evaluation set asks for
table.py     for people        picture.py  --plot        command.py  the command line
"""
