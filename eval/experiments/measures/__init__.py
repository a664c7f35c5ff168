"""Measures of a finished model, one file each: `measure(model, tokenizer, run)` returns metrics of its record."""
