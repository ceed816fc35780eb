"""OLMo 2 and 3: norms behind attention and MLP, norms of whole rows of queries and keys; OLMo 3 has windows."""
