#!/usr/bin/env python
"""Test with sapa_mm registered, by the test.py of the config's framework; see --help."""

from _launch import main

if __name__ == '__main__':
    main('test')
