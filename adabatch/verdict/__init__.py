"""`adabatch-report FOLDER...`: whether an adaptive batch beats a fixed one, from run folders alone.

arms.py     runs, arms, what was declared, the verdict, as plain values
decide.py   the procedure: from arms to a verdict      pairs.py   one candidate against one rival
power.py    how many seeds would decide                words.py   the sentence
folders.py  which runs belong together                 readings.py  one run folder as a run
plan.py     margins and looks: compare.yaml and the command line
table.py    columns and lines                          formats.py   text, markdown, latex, csv, dawnbench
traces.py   what is drawn of a run                     page/       report.html: pictures, tables, style
watch.py    --watch                                    publish.py  --wandb: the verdict as a W&B report
command.py  the command line
"""
