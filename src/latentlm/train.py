"""`python -m latentlm.train` and `accelerate launch -m latentlm.train`: the same as `latentlm train`."""

from latentlm.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
