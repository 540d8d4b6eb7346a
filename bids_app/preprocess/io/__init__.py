"""Reading and checking images: headers, volumes, repetition and slice times.

Nothing is estimated here but the values between volumes that slice timing correction asks for.
"""
