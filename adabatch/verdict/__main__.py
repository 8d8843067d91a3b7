from adabatch.verdict.command import main

main()
