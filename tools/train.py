#!/usr/bin/env python
"""Train with sapa_mm registered, by the train.py of the config's framework; see --help."""

from _launch import main

if __name__ == '__main__':
    main('train')
