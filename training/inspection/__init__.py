"""`relevance inspect`: where a scorer is wrong, for people who look at its mistakes one by one."""
