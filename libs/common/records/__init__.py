"""SQL: the truth. Tables, the database handle and one module of queries per resource."""
