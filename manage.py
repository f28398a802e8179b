#!/usr/bin/env python
"""Django's command line for AdapterHub, from a clone; `python -m adapterhub.manage` is the same."""

from adapterhub.manage import main

if __name__ == "__main__":
    main()
