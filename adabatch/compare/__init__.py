"""A comparison before and while it runs: which arms, in what order, declared where, tuned how. No Hydra.

asked.py    what `compare` in the configuration says, checked
arms.py     one arm
making.py   from names to arms: ladder, adaptive arms, controls; duplicates left out
matching.py which schedules do the same; the fixed batch of as many updates
tabulated.py arms as an experiment gives them, for a table without a verdict
declare.py  compare.yaml, written before the first run
tuning.py   the search for each arm's learning rate
jobs.py     blocks in random order, and what is to be done with each run
told.py     what it will cost, in words
"""
