"""What is measured: each module is one measurement, with the constant `MEASUREMENT`.

A file here, or an entry point of another package in the group ``hylorada.measurements``, is all
that a measurement takes (docs/EXTENDING.md). Settings are checked and reports made through these
modules too, so none of them imports torch, transformers, peft, numpy or matplotlib at its top.
"""
