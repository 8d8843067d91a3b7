"""`python -m adabatch.verify`: the same as adabatch-verify."""

from adabatch.verify.command import main

if __name__ == "__main__":
    main()
