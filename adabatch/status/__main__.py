from adabatch.status.command import main

main()
