"""imgcls: fine-tune image classifiers, and know what every run did."""

__version__ = "0.1.0"
