"""`python -m latentlm`: the same as `latentlm`."""

from latentlm.cli import main

if __name__ == "__main__":
    main()
