"""`python -m adabatch.planning`: the same as adabatch-plan."""

from adabatch.planning.command import main

if __name__ == "__main__":
    main()
