"""Image input: headers, volumes, repetition time, slice times and slice timing correction."""
