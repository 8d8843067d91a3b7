"""`adabatch-status FOLDER...`: what runs do, from their folders (and SLURM, where it is there). Reads only.

folders.py  finds run folders         facts.py    one folder's files as plain, bounded values
rows.py     order, columns, JSON      verdict.py  the state that is shown: `lost` is decided here
failed.py   what failed, at length    table.py    the table of a terminal; words.py: numbers and text
command.py  the command line          watch.py    again and again
"""
