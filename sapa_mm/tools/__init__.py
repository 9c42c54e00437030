"""What the command ``sapa-mm`` and the scripts in tools/ do; importing it imports nothing more.

A module or package of this folder is a tool with a ``main(argv, prog)``, or what several tools
share. `sapa_mm.tools.cli` lists the tools.
"""
