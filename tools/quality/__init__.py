"""How good retrieval, answers and the reading of files are, measured over HTTP on a running stack."""
