"""The model upstream of one machine: OpenAI's embeddings and chat completions API without a model provider.

An unmodified `openai` SDK talks to it. Embeddings come from all-MiniLM-L6-v2; the chat model answers with sentences of
the passages in its prompt and invents nothing. It has no authentication: keep it on the loopback interface.
"""
