"""harness: which way of fine-tuning should I use for my task, what will it cost, and what will my model forget?"""

__all__ = ["__version__"]

__version__ = "0.1.0"
