"""adabatch-profile: how long a step takes, by batch size, on this machine.

points.py   which ways of taking a step are timed     timing.py   the timing, by the run's own step
peak.py     memory at the peak of a point             cost.py     operations and bytes of a sample
processes.py  several ranks                           table.py, picture.py  for people
command.py  the command line
sweep.py    one batch under several settings          visit.py    one of them, in a process of its own
bars.py     their picture
"""
