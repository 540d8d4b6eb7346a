"""Adapters: what turns an encoder into an answer to a question. file.py says what one is, predict.py applies it."""
