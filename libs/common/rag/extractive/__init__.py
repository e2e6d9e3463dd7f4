"""Answers without a model: sentences of the passages, chosen by the words they share with the question."""
