"""The command line: the verbs, and what each of them needs."""
